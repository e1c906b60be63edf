"""Advantages from the mean and the spread of the prompt's own samples (GRPO)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_ray.algorithms.by_group import by_group
from rlhf_ray.algorithms.equality import BFLOAT16_ULP, ROUNDING, are_equal


def _unbiased(group: Tensor, _: float) -> Tensor:
    return group.std(unbiased=True)


def _biased(group: Tensor, _: float) -> Tensor:
    return group.std(unbiased=False)


def _leave_one_out(group: Tensor, tolerance: float) -> Tensor:
    """Unbiased deviation of the OTHER samples of each [n]; exactly 0 where the others are equal."""
    others = group.repeat(group.shape[0], 1)[~torch.eye(group.shape[0], dtype=torch.bool)]
    others = others.view(group.shape[0], -1)
    centred = others - others.mean(dim=1, keepdim=True)
    deviation = (centred.square().sum(dim=1) / max(others.shape[1] - 1, 1)).sqrt()
    # Equal rewards whose mean was rounded leave a deviation of 1e-17, and not of 0.
    same = torch.tensor([are_equal(row, tolerance) for row in others], device=group.device)
    return torch.where(same, 0.0, deviation)


_DEVIATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "unbiased": _unbiased,
    "biased": _biased,
    "leave_one_out": _leave_one_out,
}


def group_advantages(
    rewards: Tensor,
    group_sizes: Tensor,
    *,
    normalize_by_std: bool,
    std_epsilon: float,
    std_estimator: str = "unbiased",
    tolerance: float = BFLOAT16_ULP,
) -> Tensor:
    """Advantage of each sample over its group, one number per sample.

        A_i = r_i - mean(r)                                without the standard deviation
        A_i = (r_i - mean(r)) / (std(r) + std_epsilon)     with it

    Shao et al. 2024, DeepSeekMath (GRPO), arXiv:2402.03300, section 4.1.2; without the
    division: Liu et al. 2025, Understanding R1-Zero-Like Training, arXiv:2503.20783.

    Conventions: unbiased standard deviation (n - 1), epsilon outside the root, statistics in
    float64. A group of equal rewards, or of one, has advantages of exactly 0 (`by_group`).
    "leave_one_out" divides by the deviation of the other samples; where the others are equal, up
    to the same tolerance, by 1.

    Args:
        rewards [S]: one per sample, the samples of a group side by side.
        group_sizes [G] int64: samples per group; sums to S.
        std_estimator: "unbiased", "biased" or "leave_one_out".
        tolerance: see `by_group`.

    Returns:
        [S] float64.
    """
    assert std_estimator in _DEVIATIONS, (
        f"std_estimator {std_estimator!r} is not in {sorted(_DEVIATIONS)}"
    )

    def estimate(group: Tensor, members: slice) -> Tensor:
        del members
        centred = group - group.mean()
        if not normalize_by_std:
            return centred
        deviation = _DEVIATIONS[std_estimator](group, tolerance)
        return centred / torch.where(deviation > 0, deviation + std_epsilon, 1.0)

    # Only a division magnifies a difference of rounding.
    least = tolerance if normalize_by_std else ROUNDING
    return by_group(rewards, group_sizes, estimate, tolerance=least)
