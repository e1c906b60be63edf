"""Advantages against the greedy answer to the same prompt (ReMax)."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_floating, assert_lengths


def remax_advantages(rewards: Tensor, greedy_rewards: Tensor, group_sizes: Tensor) -> Tensor:
    """Reward less that of the greedy answer, one number per sample.

        A_i = r_i - r(greedy answer)

    Li et al. 2023, ReMax, arXiv:2310.10505. Needs no other sample: a group of one has a baseline
    too.

    Args:
        rewards [S]: one per sample, the samples of a group side by side.
        greedy_rewards [G]: of the greedy answer to each prompt.
        group_sizes [G] int64: samples per group; sums to S.

    Returns:
        [S] float64.
    """
    assert_floating("rewards", rewards, (rewards.numel(),))
    assert_floating("greedy_rewards", greedy_rewards, group_sizes.shape)
    assert_lengths(group_sizes, rewards.shape[0], "group_sizes")
    return rewards.double() - torch.repeat_interleave(greedy_rewards.double(), group_sizes)
