"""Saved records of the release before, whose fields had other names, are read as those of today."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_ray.config.groups.algorithm import OldLogprobsFrom
from rlhf_ray.records import Experience, FailureKind, RolloutGroup, TokenValues
from rlhf_ray.records.files import load_preference_samples, load_records, save_records
from tests.unit.training.builders import F, T, build, make_group, only

FAILURE = {
    "__record__": "SampleFailure",
    "prompt_id": "e0-r1",
    "sample_index": 2,
    "kind": {"__enum__": "reward_timeout"},
    "message": "late",
}
PROMPT = {
    "__record__": "Prompt",
    "prompt_id": "e0-r1",
    "stream_index": 1,
    "text": "1 + 1",
    "token_ids": (7,),
    "answer": "2",
    "source": "sums",
    "seed": 3,
    "columns": {"level": 3},
    "messages": (),
}


def doubles(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def old_group(**changed: Any) -> dict[str, Any]:
    """Two samples of a prompt token and a sampled token, as the release before wrote them."""
    return {
        "__record__": "RolloutGroup",
        "prompt": PROMPT,
        "sample_indices": (0, 1),
        "token_ids": torch.tensor([7, 8, 7, 9]),
        "lengths": torch.tensor([2, 2]),
        "loss_mask": torch.tensor([F, T, F, T]),
        "generator_logprobs": torch.tensor([0.0, -1.0, 0.0, -2.0]),
        "kept_token_ids": torch.zeros(4, 0, dtype=torch.int32),
        "weight_versions": torch.tensor([-1, 5, -1, 5]),
        "responses": ("a", "b"),
        "finish_reasons": ("stop", "length"),
        "rewards": doubles(1.0, 0.5),
        "reward_parts": {"x": doubles(1.0, 0.5)},
        "failures": (FAILURE,),
        "text_ends": torch.zeros(0, dtype=torch.int32),
        "step_rewards": torch.zeros(0, dtype=torch.float64),
        "step_ends": torch.zeros(0, dtype=torch.bool),
        **changed,
    }


def old_experience(**changed: Any) -> dict[str, Any]:
    numbers = torch.tensor([0.0, 1.0])
    names = ("advantages", "old_logprobs", "generator_logprobs", "reference_logprobs")
    return {
        "__record__": "Experience",
        "token_ids": torch.tensor([7, 8]),
        "lengths": torch.tensor([2]),
        "loss_mask": torch.tensor([F, T]),
        **dict.fromkeys(names, numbers),
        "kept_token_ids": torch.zeros(2, 0, dtype=torch.int32),
        "returns": numbers,
        "values": numbers,
        "weights": torch.tensor([0.0, 1.5]),
        "chosen": torch.tensor([F, T]),
        "micro_batches": ((0,),),
        "num_loss_tokens": 1,
        "num_sequences": 1,
        "num_positive_tokens": 1,
        "reference_kept_logprobs": torch.zeros(2, 0),
        "old_is_current": True,
        **changed,
    }


def loaded(tmp_path: Path, record: dict[str, Any]) -> Any:
    torch.save([record], tmp_path / "records.pt")
    (found,) = load_records(tmp_path / "records.pt")
    return found


def test_a_group_without_steps_and_support(tmp_path):
    group = loaded(tmp_path, old_group())
    assert isinstance(group, RolloutGroup)
    assert group.steps is None
    assert group.support_token_ids is None
    assert group.token_ids.tolist() == [7, 8, 7, 9]
    assert group.prompt.columns == {"level": 3}
    assert group.failures[0].kind is FailureKind.REWARD_TIMEOUT
    assert group.summary().rewards == (1.0, 0.5)


def test_a_group_with_steps_and_support(tmp_path):
    support = torch.tensor([[-1], [8], [-1], [9]], dtype=torch.int32)
    group = loaded(
        tmp_path,
        old_group(
            kept_token_ids=support,
            text_ends=torch.tensor([0, 1, 0, 1], dtype=torch.int32),
            step_rewards=doubles(0.0, 1.0, 0.0, 0.5),
            step_ends=torch.tensor([F, T, F, T]),
        ),
    )
    assert torch.equal(group.support_token_ids, support)
    assert group.steps.text_ends.tolist() == [0, 1, 0, 1]
    assert group.steps.ends.tolist() == [F, T, F, T]
    assert group.summary().step_rewards == ((1.0,), (0.5,))


def test_a_group_whose_steps_were_not_scored_yet(tmp_path):
    ends = torch.tensor([0, 1, 0, 1], dtype=torch.int32)
    group = loaded(tmp_path, old_group(text_ends=ends, rewards=doubles(), reward_parts={}))
    assert not group.is_scored
    assert group.steps.text_ends.tolist() == [0, 1, 0, 1]
    assert group.steps.rewards.tolist() == [0.0] * 4
    assert group.steps.ends.tolist() == [F] * 4


def test_values_of_a_role(tmp_path):
    old = {"__record__": "TokenValues", "prompt_id": "e0-r1", "values": torch.tensor([0.0, 1.0])}
    bare = old | {"after": torch.zeros(0), "kept_logprobs": torch.zeros(0, 0)}
    found = loaded(tmp_path, bare)
    assert isinstance(found, TokenValues)
    assert found.final_values is None
    assert found.support_logprobs is None
    full = old | {"after": torch.tensor([2.0]), "kept_logprobs": torch.tensor([[0.5], [0.25]])}
    found = loaded(tmp_path, full)
    assert found.final_values.tolist() == [2.0]
    assert found.support_logprobs.tolist() == [[0.5], [0.25]]


@pytest.mark.parametrize(
    ("old", "source"),
    [(True, OldLogprobsFrom.LEARNER_IN_UPDATE), (False, OldLogprobsFrom.LEARNER_BEFORE_UPDATE)],
)
def test_experience(tmp_path, old, source):
    found = loaded(tmp_path, old_experience(old_is_current=old))
    assert isinstance(found, Experience)
    assert found.old_logprobs_from is source
    assert found.importance_weights.tolist() == [0.0, 1.5]
    assert found.covariance_selected.tolist() == [F, T]
    assert found.support_token_ids is None
    assert found.reference_support_logprobs is None
    rows = torch.tensor([[0.0], [-1.0]])
    found = loaded(tmp_path, old_experience(reference_kept_logprobs=rows))
    assert torch.equal(found.reference_support_logprobs, rows)


def test_preference_samples_of_a_reward_models_checkpoint():
    fields = {
        "token_ids": torch.tensor([7, 8]),
        "lengths": torch.tensor([2]),
        "loss_mask": torch.tensor([F, T]),
        "micro_batches": ((0,),),
        "prompts": torch.tensor([0]),
        "ranks": torch.tensor([0]),
        "margins": doubles(0.0),
        "reference_logprobs": doubles(0.0),
        "num_prompts": 1,
    }
    for saved in (fields, fields | {"kept_token_ids": torch.zeros(2, 0, dtype=torch.int32)}):
        samples = load_preference_samples(saved)
        assert samples.token_ids.tolist() == [7, 8]
        assert samples.support_token_ids is None


def test_records_of_today_come_back_as_they_were(tmp_path):
    group = make_group(0, [[F, T, T]], [1.0])
    save_records([group, only(build([group]))], tmp_path / "records.pt")
    found, experience = load_records(tmp_path / "records.pt")
    assert found.steps is None
    assert found.support_token_ids is None
    assert torch.equal(found.token_ids, group.token_ids)
    assert experience.old_logprobs_from is OldLogprobsFrom.LEARNER_IN_UPDATE
    assert experience.reference_support_logprobs is None
