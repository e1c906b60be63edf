"""The clipped surrogate: the policy loss of every token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_no_gradient, assert_token_tensors
from rlhf_ray.algorithms.policy_losses.ratio import Ratio


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyLoss:
    """Loss and diagnostics of every token; see `reduce` for the way to one number.

    Attributes:
        per_token [N]: the loss, with gradient; 0 off the mask.
        ratio [N]: probability under the policy over the old one; detached, 1 off the mask.
        clipped [N] bool: the clip decided the loss.
        clamped [N] bool: the log ratio was outside the clamp.
    """

    per_token: Tensor
    ratio: Tensor
    clipped: Tensor
    clamped: Tensor


def clipped_loss(
    ratio: Ratio,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> PolicyLoss:
    """Pessimistic clipped surrogate per token, of a ratio of any level.

        loss = -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)
        loss =  min(loss, -dual_clip * A)       where A < 0, with a dual clip

    Schulman et al. 2017, Proximal Policy Optimization Algorithms, arXiv:1707.06347,
    equation 7; clip_high > clip_low is "clip-higher" of Yu et al. 2025, DAPO,
    arXiv:2503.14476; the dual clip: Ye et al. 2019, Mastering Complex Control in MOBA Games,
    arXiv:1912.09729.

    Conventions: no dual clip unless one is given. On the first optimiser step on fresh
    rollouts pass the log-probabilities, detached, as the old ones: the ratio is then exactly 1
    and the gradient that of -A * logprobs.

    Args:
        ratio: of N tokens.
        advantages [N]: a constant; mask [N] bool.
        dual_clip: largest ratio that counts against a token with a negative advantage,
            above 1; None for no bound.
    """
    assert_token_tensors(mask, ratio=ratio.ratio, advantages=advantages)
    assert_no_gradient(advantages=advantages)
    advantages = torch.where(mask, advantages, 0.0)
    unclipped = -advantages * ratio.ratio
    clipped = -advantages * ratio.ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    per_token = torch.maximum(unclipped, clipped)
    decided = clipped.detach() > unclipped.detach()
    if dual_clip is not None:
        bound = -advantages * dual_clip
        beyond = (advantages < 0) & (per_token > bound)
        per_token = torch.where(beyond, bound, per_token)
        decided = decided | beyond
    return PolicyLoss(
        per_token=per_token, ratio=ratio.ratio.detach(), clipped=decided, clamped=ratio.clamped
    )


def unclipped_loss(ratio: Ratio, advantages: Tensor, mask: Tensor) -> PolicyLoss:
    """The surrogate without a clip: -ratio * A; its gradient is that of REINFORCE at ratio 1.

    Off-policy, truncated importance weights bound it: see `correction`.
    """
    assert_token_tensors(mask, ratio=ratio.ratio, advantages=advantages)
    assert_no_gradient(advantages=advantages)
    return PolicyLoss(
        per_token=-torch.where(mask, advantages, 0.0) * ratio.ratio,
        ratio=ratio.ratio.detach(),
        clipped=torch.zeros_like(mask),
        clamped=ratio.clamped,
    )
