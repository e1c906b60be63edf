"""The geometric mean of a sequence's clipped ratios (GMPO)."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_lengths, assert_no_gradient, assert_token_tensors
from rlhf_ray.algorithms.policy_losses.clip import PolicyLoss
from rlhf_ray.algorithms.policy_losses.ratio import Ratio
from rlhf_ray.algorithms.ragged import sequence_means


def gmpo_loss(
    ratio: Ratio,
    advantages: Tensor,
    lengths: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    log_ratio_clamp: float,
) -> PolicyLoss:
    """One loss per sequence, on each of its tokens.

        e_t  = min(d_t, clip_high)   where A > 0
        e_t  = max(d_t, -clip_low)   where A < 0
        loss = -exp(clamp(mean of e_t)) * A,   A the mean of the sequence's advantages

    Zhao et al. 2025, Geometric-Mean Policy Optimization, arXiv:2507.20673, equation 4: the
    pessimistic clip of the LOG ratio d, token by token, before the mean; the paper uses 0.4 on
    both sides.

    Conventions: each sign of A leaves one side open, so the mean is clamped to +- log_ratio_clamp
    before the exponential, and a clamped sequence has no gradient (see `probability_ratio`).

    Args:
        ratio: of N tokens, at the level "token".
        advantages [N]: a constant; lengths [S] int64 summing to N, mask [N] bool.
    """
    assert_token_tensors(mask, log_ratio=ratio.log_ratio, advantages=advantages)
    assert_lengths(lengths, mask.shape[0])
    assert_no_gradient(advantages=advantages)
    advantages = sequence_means(advantages, lengths, mask)
    above = (advantages > 0) & (ratio.log_ratio.detach() > clip_high)
    below = (advantages < 0) & (ratio.log_ratio.detach() < -clip_low)
    clipped = torch.where(above, clip_high, torch.where(below, -clip_low, ratio.log_ratio))
    exponent = sequence_means(clipped, lengths, mask)
    geometric = exponent.clamp(-log_ratio_clamp, log_ratio_clamp).exp()
    return PolicyLoss(
        per_token=-geometric * advantages,
        ratio=torch.where(mask, geometric.detach(), 1.0),
        clipped=above | below,
        clamped=exponent.detach().abs() > log_ratio_clamp,
    )
