"""A soft gate instead of a clip (SAPO)."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_no_gradient, assert_token_tensors
from rlhf_ray.algorithms.policy_losses.clip import PolicyLoss
from rlhf_ray.algorithms.policy_losses.ratio import Ratio


def sapo_loss(
    ratio: Ratio,
    advantages: Tensor,
    mask: Tensor,
    *,
    positive_temperature: float,
    negative_temperature: float,
) -> PolicyLoss:
    """The surrogate with a sigmoid gate that fades out tokens far from the old policy.

        gate = 4 / tau * sigmoid(tau * (ratio - 1)),   tau by the sign of A
        loss = -gate * A

    Gao et al. 2025, Soft Adaptive Policy Optimization, arXiv:2511.20347, equations 5 and 6:
    at ratio 1 the gradient is that of the unclipped surrogate. A larger temperature fades
    sooner; the paper gives negative advantages the larger one.

    Args:
        ratio: of N tokens; advantages [N]: a constant; mask [N] bool.
        positive_temperature, negative_temperature: tau where A > 0, and elsewhere.
    """
    assert_token_tensors(mask, ratio=ratio.ratio, advantages=advantages)
    assert_no_gradient(advantages=advantages)
    advantages = torch.where(mask, advantages, 0.0)
    temperature = torch.where(advantages > 0, positive_temperature, negative_temperature)
    gate = torch.sigmoid(temperature * (ratio.ratio - 1.0)) * 4.0 / temperature
    return PolicyLoss(
        per_token=-gate * advantages,
        ratio=ratio.ratio.detach(),
        clipped=torch.zeros_like(mask),
        clamped=ratio.clamped,
    )
