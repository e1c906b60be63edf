"""Advantages from a reward for every step of an answer (process supervision)."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_ray.algorithms.advantages.group_advantages import group_advantages
from rlhf_ray.algorithms.advantages.returns import returns_to_go
from rlhf_ray.algorithms.checks import assert_lengths, assert_token_tensors
from rlhf_ray.algorithms.equality import BFLOAT16_ULP


def process_advantages(
    step_rewards: Tensor,
    step_ends: Tensor,
    lengths: Tensor,
    mask: Tensor,
    group_sizes: Tensor,
    *,
    std_epsilon: float,
    normalize_by_std: bool = True,
    std_estimator: str = "unbiased",
    tolerance: float = BFLOAT16_ULP,
) -> Tensor:
    """Sum of the normalised rewards of the steps that end at a token or after it.

        R'  = (R - mean(R)) / (std(R) + std_epsilon)   over all steps of all samples of a group
        A_t = sum of R'_j over the steps j that end at t or later

    Shao et al. 2024, DeepSeekMath, arXiv:2402.03300, section 4.1.3.

    Conventions: those of `group_advantages`, of which this is the case of steps in the place of
    samples: exactly 0 where all step rewards of a group are equal, or where it has one step.

    Args:
        step_rewards [N]: read at `step_ends` only.
        step_ends [N] bool: True on the last token of every step; those off `mask` do not count.
        lengths [S] int64 summing to N, mask [N] bool.
        group_sizes [G] int64: samples per group; sums to S.
        normalize_by_std, std_estimator, tolerance: see `group_advantages`.

    Returns:
        [N] float64, 0 off the mask.
    """
    assert_token_tensors(mask, step_rewards=step_rewards)
    assert_token_tensors(step_ends)
    assert_lengths(lengths, mask.shape[0])
    assert_lengths(group_sizes, lengths.shape[0], "group_sizes")
    ends = step_ends & mask
    sample_of = torch.repeat_interleave(lengths)[ends]
    group_of = torch.repeat_interleave(group_sizes)[sample_of]
    steps_per_group = torch.bincount(group_of, minlength=group_sizes.shape[0])

    normalized = torch.zeros(mask.shape[0], dtype=torch.float64, device=mask.device)
    normalized[ends] = group_advantages(
        step_rewards[ends].double(),
        steps_per_group,
        normalize_by_std=normalize_by_std,
        std_epsilon=std_epsilon,
        std_estimator=std_estimator,
        tolerance=tolerance,
    )
    return returns_to_go(normalized, lengths, mask, gamma=1.0)
