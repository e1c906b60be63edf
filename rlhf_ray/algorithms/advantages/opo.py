"""Advantages against the baseline of least variance (OPO)."""

from __future__ import annotations

from torch import Tensor

from rlhf_ray.algorithms.by_group import by_group
from rlhf_ray.algorithms.checks import assert_floating
from rlhf_ray.algorithms.equality import ROUNDING


def opo_advantages(rewards: Tensor, response_lengths: Tensor, group_sizes: Tensor) -> Tensor:
    """Reward less the length-weighted mean reward of the group, one number per sample.

        A_i = r_i - sum_j l_j * r_j / sum_j l_j

    Hao et al. 2025, On-Policy RL with Optimal Reward Baseline, arXiv:2505.23585: the baseline
    of least variance weighs each sample by the squared norm of its gradient, for which its
    length l stands.

    Args:
        rewards [S]: one per sample, the samples of a group side by side.
        response_lengths [S] floating point: sampled tokens of each. A group without any falls
            back to the plain mean.
        group_sizes [G] int64: samples per group; sums to S. A group of one gets 0.

    Returns:
        [S] float64.
    """
    assert_floating("response_lengths", response_lengths, rewards.shape)

    def estimate(group: Tensor, members: slice) -> Tensor:
        weights = response_lengths[members].double()
        if not bool(weights.any()):
            return group - group.mean()
        return group - (weights * group).sum() / weights.sum()

    return by_group(rewards, group_sizes, estimate, tolerance=ROUNDING)
