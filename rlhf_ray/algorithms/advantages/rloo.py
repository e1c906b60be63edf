"""Advantages against the mean of the other samples of the prompt (RLOO)."""

from __future__ import annotations

from torch import Tensor

from rlhf_ray.algorithms.by_group import by_group
from rlhf_ray.algorithms.equality import ROUNDING


def rloo_advantages(rewards: Tensor, group_sizes: Tensor) -> Tensor:
    """Advantage of each sample over the others of its group, one number per sample.

        A_i = r_i - mean of r_j over j != i  =  n / (n - 1) * (r_i - mean(r))

    Ahmadian et al. 2024, Back to Basics: Revisiting REINFORCE-Style Optimization,
    arXiv:2402.14740 (the estimator is that of Kool et al. 2019).

    Args:
        rewards [S]: one per sample, the samples of a group side by side.
        group_sizes [G] int64: samples per group; sums to S. A group of one gets 0.

    Returns:
        [S] float64.
    """

    def estimate(group: Tensor, members: slice) -> Tensor:
        del members
        others = (group.sum() - group) / (group.shape[0] - 1)
        return group - others

    return by_group(rewards, group_sizes, estimate, tolerance=ROUNDING)
