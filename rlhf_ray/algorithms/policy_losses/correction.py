"""Importance-sampling correction for engines whose probabilities differ from the learner's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_lengths, assert_no_gradient, assert_token_tensors
from rlhf_ray.algorithms.ragged import count_by_segment, spread_over_tokens, sum_by_segment

_WEIGHTS = ("none", "token", "sequence")
_FILTERS = ("none", "token", "sequence", "geometric")


@dataclass(frozen=True, kw_only=True, slots=True)
class Correction:
    """Importance weights and filter of the losses of tokens.

    Attributes:
        weights [N] float64: factor of the token's loss; 0 off the mask.
        kept [N] bool: inside the bounds of the filter; False off the mask.
        truncated [N] bool: the weight was above the cap.
    """

    weights: Tensor
    kept: Tensor
    truncated: Tensor


def importance_correction(
    learner_logprobs: Tensor,
    generator_logprobs: Tensor,
    lengths: Tensor,
    mask: Tensor,
    *,
    weight: str,
    cap: float,
    keep: str,
    low: float,
    high: float,
) -> Correction:
    """Importance weights of the learner over the engine, truncated, and a filter.

    With d_t = log learner(token) - log engine(token) and, by sequence, sums over its tokens:

        weight token      w_t = min(exp(d_t), cap)
        weight sequence   w   = min(exp(sum of d), cap), on all of the sequence's tokens
        keep token        low <= exp(d_t) <= high
        keep sequence     low <= exp(sum of d) <= high
        keep geometric    low <= exp(mean of d) <= high

    The truncated weights: Espeholt et al. 2018, IMPALA, arXiv:1802.01561, and for engines that
    differ from the learner Yao et al. 2025, Your Efficient RL Framework Secretly Brings You
    Off-Policy RL Training; the filter by token with its weight: IcePop, Ling Team 2025,
    arXiv:2510.18855; by sequence: Liu et al. 2025, When Speed Kills Stability.

    Conventions: weights of 0 where the mask is 0. The weight of a sequence is the exponential
    of the SUM; the geometric mean only filters. A filtered token has weight 0. The caller
    decides by `kept` whether it also leaves the means (rejection). In float64, without a clamp
    of d: an overflow is cut off by the cap, and is outside every filter.

    Args:
        learner_logprobs [N], generator_logprobs [N]: constants, at the sampling distribution.
        lengths [S] int64 summing to N, mask [N] bool.
        weight: "none" (1), "token" or "sequence".
        keep: "none", "token", "sequence" or "geometric".
    """
    assert_token_tensors(
        mask, learner_logprobs=learner_logprobs, generator_logprobs=generator_logprobs
    )
    assert_lengths(lengths, mask.shape[0])
    assert_no_gradient(learner_logprobs=learner_logprobs, generator_logprobs=generator_logprobs)
    assert weight in _WEIGHTS, f"weight {weight!r} is not in {_WEIGHTS}"
    assert keep in _FILTERS, f"keep {keep!r} is not in {_FILTERS}"
    difference = torch.where(mask, learner_logprobs.double() - generator_logprobs.double(), 0.0)
    ratio = _ratio(difference, lengths, mask, level=weight)
    kept = mask
    if keep != "none":
        bounded = _ratio(difference, lengths, mask, level=keep)
        kept = mask & (bounded >= low) & (bounded <= high)
    return Correction(
        weights=torch.where(kept, ratio.clamp(max=cap), 0.0),
        kept=kept,
        truncated=mask & (ratio > cap),
    )


def _ratio(difference: Tensor, lengths: Tensor, mask: Tensor, *, level: str) -> Tensor:
    """Learner over engine [N] at a level, from the difference of their log-probabilities."""
    if level == "none":
        return torch.ones_like(difference)
    if level == "token":
        return difference.exp()
    exponents = sum_by_segment(difference, lengths, mask)
    if level == "geometric":
        exponents = exponents / count_by_segment(mask, lengths).clamp(min=1)
    return spread_over_tokens(exponents, lengths, mask).exp()


def effective_sample_size(weights: Tensor, mask: Tensor) -> float:
    """Share of the tokens that would carry as much information with equal weights.

        (sum w)^2 / (n * sum w^2)

    Kong 1992, A Note on Importance Sampling using Standardized Weights. 1 for equal weights;
    0 where all are 0, or nothing is sampled.
    """
    assert_token_tensors(mask, weights=weights)
    kept = weights[mask].double()
    squares = float(kept.square().sum())
    return float(kept.sum()) ** 2 / (kept.numel() * squares) if squares > 0 else 0.0
