"""The clipped surrogate: the policy loss of every token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_no_gradient, assert_token_tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyLoss:
    """Loss and diagnostics of every token; reduce each with `masked_mean`.

    Attributes:
        per_token [N]: the loss, with gradient; 0 off the mask.
        ratio [N]: probability under the policy over the old one; detached, 1 off the mask.
        clipped [N] bool: the clip decided the loss, so that the token has no gradient.
        clamped [N] bool: the log ratio was outside the clamp.
    """

    per_token: Tensor
    ratio: Tensor
    clipped: Tensor
    clamped: Tensor


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    log_ratio_clamp: float,
) -> PolicyLoss:
    """Pessimistic clipped surrogate per token.

        ratio = exp(clamp(logprobs - old_logprobs, -log_ratio_clamp, log_ratio_clamp))
        loss  = -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)

    Schulman et al. 2017, Proximal Policy Optimization Algorithms, arXiv:1707.06347,
    equation 7; clip_high > clip_low is "clip-higher" of Yu et al. 2025, DAPO,
    arXiv:2503.14476.

    Conventions: no dual clip. A log ratio beyond the clamp has no gradient and is reported.
    On the first optimiser step on fresh rollouts pass `logprobs.detach()` as the old ones: the
    ratio is then exactly 1 and the gradient that of -A * logprobs.

    Args:
        logprobs [N] of the policy in training, with gradient.
        old_logprobs [N], advantages [N]: constants.
        mask [N] bool.
    """
    assert_token_tensors(mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    assert_no_gradient(old_logprobs=old_logprobs, advantages=advantages)
    # Inputs are masked, not the loss: 0 * NaN in the backward pass would be NaN.
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    advantages = torch.where(mask, advantages, 0.0)
    ratio = log_ratio.clamp(-log_ratio_clamp, log_ratio_clamp).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return PolicyLoss(
        per_token=torch.maximum(unclipped, clipped),
        ratio=ratio.detach(),
        clipped=clipped.detach() > unclipped.detach(),
        clamped=log_ratio.detach().abs() > log_ratio_clamp,
    )
