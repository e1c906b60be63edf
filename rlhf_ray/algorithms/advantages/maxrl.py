"""Advantages that make hard prompts count more (MaxRL)."""

from __future__ import annotations

from torch import Tensor

from rlhf_ray.algorithms.by_group import by_group
from rlhf_ray.algorithms.equality import ROUNDING


def maxrl_advantages(rewards: Tensor, group_sizes: Tensor) -> Tensor:
    """Distance to the mean reward of the group, in units of that mean; one number per sample.

        A_i = (r_i - mean(r)) / mean(r)

    Tajwar et al. 2026, Maximum Likelihood Reinforcement Learning, arXiv:2602.02710: for
    rewards of 0 and 1 the gradient is that of the log of the success rate, not of the rate.
    A group without a success has mean 0 and advantages of 0. The authors' code adds 1e-6 to the
    mean; nothing is added here.

    Args:
        rewards [S]: none of them negative; the samples of a group side by side.
        group_sizes [G] int64: samples per group; sums to S. A group of one gets 0.

    Returns:
        [S] float64.

    Raises:
        ValueError: a reward is negative, so that the mean is no success rate.
    """
    if bool((rewards < 0).any()):
        raise ValueError(
            f"a reward is {float(rewards.min()):g}: MaxRL divides by the mean reward of a group, "
            "which has to be a success rate; use rewards of 0 and above, and no KL penalty in them"
        )

    def estimate(group: Tensor, members: slice) -> Tensor:
        del members
        return (group - group.mean()) / group.mean()

    return by_group(rewards, group_sizes, estimate, tolerance=ROUNDING)
