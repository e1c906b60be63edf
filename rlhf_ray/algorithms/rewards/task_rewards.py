"""Rewards of several tasks on one scale: each task's own mean and standard deviation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from rlhf_ray.algorithms.checks import assert_floating
from rlhf_ray.algorithms.equality import BFLOAT16_ULP, are_equal


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardMoments:
    """Count, mean and spread of the rewards of one task.

    Attributes:
        count: rewards seen, at least 1.
        mean: mean reward.
        squares: sum of the squared distances from the mean.
        lowest, highest: extremes of the rewards; equal if no two rewards differ.
    """

    count: int
    mean: float
    squares: float
    lowest: float
    highest: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardScale:
    """Normalisation of the rewards of one task: (reward - mean) / deviation."""

    mean: float
    deviation: float


def reward_moments(rewards: Sequence[float]) -> RewardMoments:
    """Compute the moments of rewards; sums are rounded once, so that order does not matter."""
    assert rewards, "no reward has no mean"
    lowest, highest = min(rewards), max(rewards)
    # The mean of equal numbers, rounded, need not be that number.
    mean = lowest if lowest == highest else math.fsum(rewards) / len(rewards)
    squares = math.fsum((reward - mean) ** 2 for reward in rewards)
    return RewardMoments(
        count=len(rewards), mean=mean, squares=squares, lowest=lowest, highest=highest
    )


def merge_moments(first: RewardMoments, second: RewardMoments) -> RewardMoments:
    """Moments of both together, as if they had been seen at once.

        n       = n_1 + n_2,   d = mean_2 - mean_1
        mean    = mean_1 + d * n_2 / n
        squares = squares_1 + squares_2 + d^2 * n_1 * n_2 / n

    Chan, Golub and LeVeque 1983, Algorithms for Computing the Sample Variance. Sums of squares
    would cancel where the mean is far from 0.
    """
    count = first.count + second.count
    apart = second.mean - first.mean
    between = apart * apart * first.count * second.count / count
    return RewardMoments(
        count=count,
        mean=first.mean + apart * second.count / count,
        squares=first.squares + second.squares + between,
        lowest=min(first.lowest, second.lowest),
        highest=max(first.highest, second.highest),
    )


def reward_scale(moments: RewardMoments, *, tolerance: float = BFLOAT16_ULP) -> RewardScale:
    """Mean, and unbiased standard deviation sqrt(squares / (count - 1)).

    Conventions: rewards that are equal (`are_equal`) are only centred (a deviation of 1), and so
    is one reward alone: it becomes 0.
    """
    if are_equal((moments.lowest, moments.highest), tolerance):
        return RewardScale(mean=moments.mean, deviation=1.0)
    deviation = math.sqrt(moments.squares / (moments.count - 1))
    return RewardScale(mean=moments.mean, deviation=deviation)


def normalize_rewards(
    rewards: Tensor, tasks: Sequence[str], scales: Mapping[str, RewardScale]
) -> Tensor:
    """Rewards on the scale of their own task.

        r' = (r - mean_task) / deviation_task

    With one critic, or without a baseline of the prompt's own samples, the task with the largest
    rewards would decide nearly all of the gradient: van Hasselt et al. 2016, Learning values across
    many orders of magnitude, arXiv:1602.07714; per task: Hessel et al. 2019, arXiv:1809.04474.

    Args:
        rewards [S], tasks [S]: names, each of which has a scale.

    Returns:
        [S] float64.
    """
    assert_floating("rewards", rewards, (len(tasks),))
    doubles = rewards.double()
    means = doubles.new_tensor([scales[task].mean for task in tasks])
    deviations = doubles.new_tensor([scales[task].deviation for task in tasks])
    return (doubles - means) / deviations
