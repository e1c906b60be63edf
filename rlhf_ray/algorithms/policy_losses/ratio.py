"""Probability ratio of the policy over the old policy, per token or per sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_lengths, assert_no_gradient, assert_token_tensors
from rlhf_ray.algorithms.ragged import sequence_means

_LEVELS = ("token", "sequence", "sequence_token")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """Probability under the policy over the old one.

    Attributes:
        log_ratio [N]: log ratio of every token, not clamped, with gradient; 0 off the mask.
        ratio [N]: ratio at the requested level, with gradient; 1 off the mask.
        clamped [N] bool: the log ratio was outside the clamp, so that it has no gradient.
    """

    log_ratio: Tensor
    ratio: Tensor
    clamped: Tensor


def probability_ratio(
    logprobs: Tensor,
    old_logprobs: Tensor,
    lengths: Tensor,
    mask: Tensor,
    *,
    level: str,
    log_ratio_clamp: float,
) -> Ratio:
    """The ratio that a policy loss clips or weighs with.

        token            r_t = exp(d_t),   d_t = log policy(token) - log old(token)
        sequence         s   = exp(mean of d over the sampled tokens), the same for all of them
        sequence_token   s_t = s, with the gradient of d_t in the place of the mean's

    Schulman et al. 2017, arXiv:1707.06347 (token); Zheng et al. 2025, Group Sequence Policy
    Optimization, arXiv:2507.18071, equation 7 (GSPO) and equation 14 (GSPO-token).

    Conventions: the exponent is clamped to +- log_ratio_clamp, at the level at which it is
    exponentiated, and a clamped ratio has no gradient. The sequence's ratio is the geometric
    mean of its tokens' ratios, not their product.

    Args:
        logprobs [N] with gradient, old_logprobs [N]: a constant.
        lengths [S] int64 summing to N, mask [N] bool.
        level: "token", "sequence" or "sequence_token".
    """
    assert_token_tensors(mask, logprobs=logprobs, old_logprobs=old_logprobs)
    assert_lengths(lengths, mask.shape[0])
    assert_no_gradient(old_logprobs=old_logprobs)
    assert level in _LEVELS, f"level {level!r} is not in {_LEVELS}"
    # Inputs are masked, not the result: 0 * NaN in the backward pass would be NaN.
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    exponent = log_ratio
    if level != "token":
        exponent = sequence_means(log_ratio, lengths, mask)
    if level == "sequence_token":
        exponent = exponent.detach() + log_ratio - log_ratio.detach()
    return Ratio(
        log_ratio=log_ratio,
        ratio=exponent.clamp(-log_ratio_clamp, log_ratio_clamp).exp(),
        clamped=exponent.detach().abs() > log_ratio_clamp,
    )
