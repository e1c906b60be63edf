"""Rewards of steps with the real engine and trainer, and a model that says any bytes."""

from __future__ import annotations

import pytest

from tests.e2e.run_command import Run
from tests.unit.algorithms import ground_truth

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600), pytest.mark.nightly]

# Steps of three characters, the more letters the better; the rest of a response is a step too.
REWARD = """
from rlhf_ray.rewards import StepRewards


def triples(sample):
    response = sample.response
    ends = [*range(3, len(response), 3), len(response)]
    rewards = [sum(c.isalpha() for c in response[max(e - 3, 0) : e]) / 3 for e in ends]
    return StepRewards(rewards=rewards, ends=ends)
"""


def advantages_of(samples: list[dict]) -> list[list[float]]:
    """Of every sampled token of a prompt's samples, from what their rollout file says."""
    rewards = [[0.0] * sample["response_tokens"] for sample in samples]
    ends = [[False] * sample["response_tokens"] for sample in samples]
    for sample, row, row_ends in zip(samples, rewards, ends, strict=True):
        place = 0
        for reward, tokens, _ in sample["steps"]:
            place += tokens
            row[place - 1], row_ends[place - 1] = reward, True
    masks = [[True] * len(row) for row in rewards]
    return ground_truth.process_advantages(rewards, ends, masks, 1e-6)


def check_texts(run: Run, step: int) -> None:
    """Where the steps of a response end is where the function said, as far as tokens allow."""
    for sample in run.rollouts(step):
        assert sample["reward"] == pytest.approx(sum(r for r, _, _ in sample["steps"]))
        assert sum(characters for _, _, characters in sample["steps"]) == len(sample["response"])
        assert sum(tokens for _, tokens, _ in sample["steps"]) == sample["response_tokens"]


def test_process_advantages_differ_within_an_answer(make_run, tmp_path):
    (tmp_path / "reward.py").write_text(REWARD)
    run = make_run(
        "algorithm=process",
        f"reward.functions=[{{path: '{tmp_path}/reward.py:triples'}}]",
        "num_steps=2",
        "generation.max_response_tokens=16",
    ).succeed()
    for row in run.metrics():
        step = int(row["step"])
        check_texts(run, step)
        by_prompt: dict[str, list[dict]] = {}
        for sample in run.rollouts(step):
            by_prompt.setdefault(sample["prompt_id"], []).append(sample)
        answers = [a for samples in by_prompt.values() for a in advantages_of(samples)]
        assert sum(len(set(answer)) > 1 for answer in answers) > len(answers) / 2
        # The run trained on these very numbers.
        trained = [number for answer in answers for number in answer]
        assert row["advantages/mean"] == pytest.approx(ground_truth.mean(trained), abs=1e-6)
        assert row["advantages/std"] == pytest.approx(
            ground_truth.unbiased_variance(trained) ** 0.5, abs=1e-6
        )
        assert row["policy/grad_norm"] > 0
        assert row["rollout/failed_groups"] == 0
