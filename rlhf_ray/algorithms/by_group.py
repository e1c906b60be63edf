"""Loop over groups for estimators with a baseline from the prompt's own samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_floating, assert_lengths
from rlhf_ray.algorithms.equality import are_equal


def by_group(
    rewards: Tensor,
    group_sizes: Tensor,
    estimate: Callable[[Tensor, slice], Tensor],
    *,
    tolerance: float,
) -> Tensor:
    """Advantages group by group; exactly 0 in a group whose rewards are all equal.

    Equality decides (`are_equal`) and not an epsilon in a denominator: a rounding difference,
    divided by a small number, must not become a signal. A group of one is equal to itself: it has
    nothing to compare with.

    Args:
        rewards [S]: one per sample, the samples of a group side by side.
        group_sizes [G] int64: samples per group; sums to S.
        estimate: the rewards of one group [n] float64, and where they are in [S], to their
            advantages [n].
        tolerance: share of the largest reward by which equal rewards may differ.

    Returns:
        [S] float64.
    """
    assert_floating("rewards", rewards, (rewards.numel(),))
    assert_lengths(group_sizes, rewards.shape[0], "group_sizes")
    advantages = torch.zeros_like(rewards, dtype=torch.float64)
    start = 0
    for size in group_sizes.tolist():
        members = slice(start, start + size)
        start += size
        group = rewards[members].double()
        if not are_equal(group, tolerance):
            advantages[members] = estimate(group, members)
    return advantages
