"""A baseline that follows the mean reward from batch to batch (REINFORCE)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor

from rlhf_ray.algorithms.checks import assert_floating


@dataclass(frozen=True, kw_only=True, slots=True)
class MovingBaseline:
    """State of the baseline.

    Attributes:
        value: the baseline in force.
        decay: weight of the past in every update, in [0, 1).
        num_updates: batches that it has seen; before the first one there is no baseline.
    """

    value: float
    decay: float
    num_updates: int


def start_moving_baseline(decay: float) -> MovingBaseline:
    """The baseline before the first batch: 0."""
    return MovingBaseline(value=0.0, decay=decay, num_updates=0)


def update_moving_baseline(state: MovingBaseline, *, mean_reward: float) -> MovingBaseline:
    """The baseline after a batch with this mean reward.

        b = r                                after the first batch
        b = decay * b + (1 - decay) * r      after every other one

    Williams 1992, Simple Statistical Gradient-Following Algorithms, section 8.4: the exponential
    average of the rewards before this one (reinforcement comparison).
    """
    weight = state.decay if state.num_updates else 0.0
    value = weight * state.value + (1.0 - weight) * mean_reward
    return dataclasses.replace(state, value=value, num_updates=state.num_updates + 1)


def baseline_advantages(rewards: Tensor, baseline: float) -> Tensor:
    """Reward less the baseline of the batches BEFORE this one: [S] -> [S] float64.

    A baseline that depends on the sample itself would bias the gradient.
    """
    assert_floating("rewards", rewards, (rewards.numel(),))
    return rewards.double() - baseline
