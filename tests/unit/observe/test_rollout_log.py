"""The samples of a step as lines of JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from rlhf_ray.observe.rollout_log import TokenDetails, rollout_path, rollout_rows, write_rollouts
from rlhf_ray.prompt_choice import DETAILED_PROMPTS
from rlhf_ray.records import GroupSteps, Prompt, RolloutGroup


def scored_group(responses: tuple[str, str] = ("hé", "no\nline\u2028")) -> RolloutGroup:
    """Two samples of two prompt tokens; the first was sampled over three publishes."""
    mask = torch.tensor([False, False, True, True, True, True, False, False, True])
    versions = torch.tensor([-1, -1, 4, 4, 5, 7, -1, -1, 5])
    return RolloutGroup(
        prompt=Prompt(
            prompt_id="e0-r3",
            stream_index=3,
            text="<user>Hi<assistant>",
            token_ids=(1, 2),
            answer=None,
            source="test",
            seed=0,
            columns={},
        ),
        sample_indices=(0, 2),
        token_ids=torch.arange(9),
        lengths=torch.tensor([6, 3]),
        loss_mask=mask,
        generator_logprobs=torch.tensor([0, 0, -0.5, -0.25, -1, -2, 0, 0, -0.123456]),
        support_token_ids=None,
        weight_versions=versions,
        responses=responses,
        finish_reasons=("length", "stop"),
        rewards=torch.tensor([0.1, 1.0], dtype=torch.float64),
        reward_parts={"exact": torch.tensor([0.0, 2.0], dtype=torch.float64)},
        failures=(),
    )


def test_rows() -> None:
    assert rollout_rows([scored_group()]) == [
        {
            "prompt_id": "e0-r3",
            "prompt": "<user>Hi<assistant>",
            "sample_index": 0,
            "response": "hé",
            "reward": 0.1,
            "reward_parts": {"exact": 0.0},
            "weight_versions": [[4, 2], [5, 1], [7, 1]],
            "finish_reason": "length",
            "response_tokens": 4,
            "tokens": {"ids": [2, 3, 4, 5], "logprobs": [-0.5, -0.25, -1.0, -2.0]},
        },
        {
            "prompt_id": "e0-r3",
            "prompt": "<user>Hi<assistant>",
            "sample_index": 2,
            "response": "no\nline\u2028",
            "reward": 1.0,
            "reward_parts": {"exact": 2.0},
            "weight_versions": [[5, 1]],
            "finish_reason": "stop",
            "response_tokens": 1,
            "tokens": {"ids": [8], "logprobs": [-0.1235]},
        },
    ]


def test_the_file_has_one_line_per_sample_and_no_partial_file_remains(tmp_path: Path) -> None:
    path = rollout_path(tmp_path, 12)
    assert path == tmp_path / "rollouts" / "step_000012.jsonl"
    groups = [scored_group(), scored_group(("\udc80", ""))]
    write_rollouts(path, groups)
    with path.open(encoding="utf-8") as file:
        assert [json.loads(line) for line in file] == rollout_rows(groups)
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = rollout_path(tmp_path, 1)
    write_rollouts(path, [scored_group()])
    before = path.read_text()
    group = scored_group()
    group.rewards[1] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_rollouts(path, [group])
    assert path.read_text() == before


def test_steps_are_spans_of_tokens_and_characters() -> None:
    group = dataclasses.replace(
        scored_group(),
        steps=GroupSteps(
            text_ends=torch.tensor([0, 0, 1, 1, 1, 2, 0, 0, 9], dtype=torch.int32),
            rewards=torch.tensor([0, 0, 0.5, 0, -1.0, 0, 0, 0, 2.0], dtype=torch.float64),
            ends=torch.tensor([False, False, True, False, True, False, False, False, True]),
        ),
    )
    first, second = rollout_rows([group])
    # One sampled token, then two that add no character; the last token belongs to no step.
    assert first["steps"] == [[0.5, 1, 1], [-1.0, 2, 0]]
    assert second["steps"] == [[2.0, 1, 9]]
    assert "steps" not in rollout_rows([scored_group()])[0]


def test_tokens_that_were_not_sampled_have_no_logprob() -> None:
    group = scored_group()
    group.loss_mask[3] = False
    group.weight_versions[3] = -1
    first = rollout_rows([group])[0]
    assert first["tokens"] == {"ids": [2, 3, 4, 5], "logprobs": [-0.5, None, -1.0, -2.0]}
    assert first["response_tokens"] == 3


def test_tokens_of_the_same_few_prompts_in_every_step() -> None:
    def group(number: int) -> RolloutGroup:
        whole = scored_group()
        prompt = dataclasses.replace(whole.prompt, text=f"prompt {number}")
        return dataclasses.replace(whole, prompt=prompt)

    def detailed(order: list[int]) -> set[str]:
        rows = rollout_rows([group(number) for number in order])
        return {row["prompt"] for row in rows if "tokens" in row}

    some = detailed(list(range(30)))
    assert len(some) == DETAILED_PROMPTS
    assert detailed(list(range(29, -1, -1))) == some


def test_advantages_and_updated_logprobs_stand_next_to_those_of_the_engine() -> None:
    group = scored_group()
    group.loss_mask[3] = False
    details = TokenDetails(
        advantages={"e0-r3": torch.arange(9) / 8, "other": torch.zeros(9)},
        updated_logprobs={"e0-r3": -torch.arange(9) / 4, "other": torch.zeros(9)},
    )
    first, second = rollout_rows([group], details)
    assert first["tokens"]["advantages"] == [0.25, None, 0.5, 0.625]
    assert first["tokens"]["updated_logprobs"] == [-0.5, None, -1.0, -1.25]
    assert second["tokens"]["advantages"] == [1.0]
    # Another group of the same name has other tokens: nothing is better than numbers of others.
    other = TokenDetails(advantages={"e0-r3": torch.zeros(5)})
    assert "advantages" not in rollout_rows([group], other)[0]["tokens"]
