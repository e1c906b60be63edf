"""Rewards by their own task's mean and deviation, against loops; what has no deviation."""

from __future__ import annotations

import math
import random

import pytest
import torch

from rlhf_ray.algorithms.rewards.task_rewards import (
    RewardMoments,
    RewardScale,
    merge_moments,
    normalize_rewards,
    reward_moments,
    reward_scale,
)
from tests.unit.algorithms import ground_truth


def batches(seed: int) -> list[list[tuple[str, float]]]:
    """Three tasks on very different scales, of which not every batch has all."""
    numbers = random.Random(seed)
    draw = {
        "small": lambda: round(numbers.random(), 2),
        "large": lambda: 1e5 + 100 * numbers.random(),
        "constant": lambda: 0.85,
    }
    return [
        [(task, draw[task]()) for task in numbers.choices(list(draw), k=numbers.randint(1, 9))]
        for _ in range(6)
    ]


def normalized(batch: list[tuple[str, float]], moments: dict[str, RewardMoments]) -> list[float]:
    scales = {task: reward_scale(found) for task, found in moments.items()}
    rewards = torch.tensor([reward for _, reward in batch], dtype=torch.float64)
    return normalize_rewards(rewards, [task for task, _ in batch], scales).tolist()


def by_task(batch: list[tuple[str, float]]) -> dict[str, RewardMoments]:
    return {
        task: reward_moments([reward for other, reward in batch if other == task])
        for task in dict(batch)
    }


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("running", [False, True])
def test_equals_the_rewards_of_the_task_gone_through_in_loops(seed, running):
    rows = batches(seed)
    moments: dict[str, RewardMoments] = {}
    for batch, expected in zip(
        rows, ground_truth.normalized_rewards(rows, running=running), strict=True
    ):
        found = by_task(batch)
        if running:
            merged = {
                task: merge_moments(moments[task], new) if task in moments else new
                for task, new in found.items()
            }
            moments |= merged
        else:
            moments = found
        assert normalized(batch, moments) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_two_tasks_by_hand():
    batch = [("a", 1.0), ("b", 100.0), ("a", 3.0), ("b", 400.0)]
    # Means 2 and 250, unbiased deviations sqrt(2) and sqrt(2 * 150^2).
    half = 1 / math.sqrt(2)
    assert normalized(batch, by_task(batch)) == pytest.approx([-half, -half, half, half])


@pytest.mark.parametrize("rewards", [[0.85], [0.85] * 3, [0.1 + 0.2, 0.3], [0.0, 0.0]])
def test_rewards_that_do_not_differ_are_only_centred(rewards):
    found = normalized([("a", reward) for reward in rewards], {"a": reward_moments(rewards)})
    assert found == pytest.approx([0.0] * len(rewards), abs=1e-15)
    if len(set(rewards)) == 1:
        assert found == [0.0] * len(rewards)
    assert reward_scale(reward_moments(rewards)).deviation == 1.0


def test_small_differences_are_a_signal():
    rewards = [1.0, 1.0 + 1e-6]
    scale = reward_scale(reward_moments(rewards), tolerance=1e-7)
    found = normalize_rewards(torch.tensor(rewards, dtype=torch.float64), ["a", "a"], {"a": scale})
    assert found.tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5], rel=1e-6)


def test_a_constant_task_stays_one_over_many_batches():
    moments = reward_moments([0.85] * 3)
    for _ in range(50):
        moments = merge_moments(moments, reward_moments([0.85] * 3))
    assert moments.count == 153
    assert normalized([("a", 0.85)], {"a": moments}) == [0.0]
    # The first reward that differs gives it a deviation.
    moments = merge_moments(moments, reward_moments([1.85]))
    assert reward_scale(moments).deviation == pytest.approx(
        math.sqrt(ground_truth.unbiased_variance([0.85] * 153 + [1.85]))
    )


def test_the_order_of_rewards_changes_nothing():
    numbers = random.Random(3)
    rewards = [numbers.uniform(-1e6, 1e6) for _ in range(40)]
    shuffled = random.Random(4).sample(rewards, len(rewards))
    assert reward_moments(rewards) == reward_moments(shuffled)


def test_a_mean_far_from_zero_keeps_the_deviation():
    near, far = ([start + x for x in (0.0, 1.0, 2.0)] for start in (0.0, 1e12))
    for rewards in (near, far):
        merged = merge_moments(reward_moments(rewards[:2]), reward_moments(rewards[2:]))
        assert reward_scale(merged).deviation == pytest.approx(1.0)


def test_a_task_without_a_scale_is_an_error():
    with pytest.raises(KeyError):
        normalize_rewards(torch.ones(1), ["a"], {"b": RewardScale(mean=0.0, deviation=1.0)})
    with pytest.raises(AssertionError, match="no reward"):
        reward_moments([])
