"""Advantages from the other samples of the same prompt (GRPO)."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_floating, assert_lengths


def group_advantages(
    rewards: Tensor, group_sizes: Tensor, *, normalize_by_std: bool, std_epsilon: float
) -> Tensor:
    """How much better each sample is than its group, one number per sample.

        A_i = r_i - mean(r)                                without the standard deviation
        A_i = (r_i - mean(r)) / (std(r) + std_epsilon)     with it

    Shao et al. 2024, DeepSeekMath (GRPO), arXiv:2402.03300, section 4.1.2; without the
    division: Liu et al. 2025, Understanding R1-Zero-Like Training, arXiv:2503.20783.

    Conventions: unbiased standard deviation (n - 1), epsilon outside the root, statistics in
    float64. A group whose rewards are all equal has advantages of exactly 0, decided by
    equality: the rounding of the mean, divided by an epsilon, must not become a signal.
    A group of one has nothing to compare with: 0.

    Args:
        rewards [S]: one per sample, the samples of a group side by side.
        group_sizes [G] int64: samples per group; sums to S.

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
        if size == 0 or bool((group == group[0]).all()):
            continue  # stays exactly 0; a group of one is equal to itself
        advantages[members] = group - group.mean()
        if normalize_by_std:
            advantages[members] /= group.std(unbiased=True) + std_epsilon
    return advantages
