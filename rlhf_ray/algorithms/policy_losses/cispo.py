"""A clipped weight on the policy gradient, so that no token loses its gradient (CISPO)."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_no_gradient, assert_token_tensors
from rlhf_ray.algorithms.policy_losses.clip import PolicyLoss
from rlhf_ray.algorithms.policy_losses.ratio import Ratio


def cispo_loss(
    logprobs: Tensor,
    ratio: Ratio,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> PolicyLoss:
    """REINFORCE with the clipped ratio as a constant weight.

        loss = -stop_gradient(clip(ratio, 1 - clip_low, 1 + clip_high)) * A * log policy(token)

    MiniMax 2025, MiniMax-M1, arXiv:2506.13585, equation 4.

    Conventions: clipped on both sides, relative to 1. clip_low = 1 leaves the lower side open,
    as the paper recommends.

    Args:
        logprobs [N] with gradient; ratio: of the same N tokens.
        advantages [N]: a constant; mask [N] bool.
    """
    assert_token_tensors(mask, logprobs=logprobs, ratio=ratio.ratio, advantages=advantages)
    assert_no_gradient(advantages=advantages)
    advantages = torch.where(mask, advantages, 0.0)
    chosen = torch.where(mask, logprobs, 0.0)
    weight = ratio.ratio.detach()
    bounded = weight.clamp(1.0 - clip_low, 1.0 + clip_high)
    return PolicyLoss(
        per_token=-bounded * advantages * chosen,
        ratio=weight,
        clipped=bounded != weight,
        clamped=ratio.clamped,
    )
