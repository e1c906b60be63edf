"""The critic's loss of every token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_no_gradient, assert_token_tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueLoss:
    """Loss and diagnostics of every token; reduce each with `mean_share`.

    Attributes:
        per_token [N]: the loss, with gradient; 0 off the mask.
        clipped [N] bool: the clip decided the loss, so that the token has no gradient.
    """

    per_token: Tensor
    clipped: Tensor


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip: float | None,
    huber_delta: float | None = None,
) -> ValueLoss:
    """Squared error against the return, pessimistic about moves beyond the clip.

        near = clip(V, V_old - clip, V_old + clip)
        loss = max(e(V - R), e(near - R)),   e(x) = x^2 / 2

    With a Huber delta an error beyond it counts linearly (Huber 1964, Robust Estimation of a
    Location Parameter):

        e(x) = x^2 / 2 where |x| <= delta, delta * (|x| - delta / 2) elsewhere

    Schulman et al. 2017, arXiv:1707.06347, section 5, with the clipping of its published code
    (described in Engstrom et al. 2020, Implementation Matters in Deep Policy Gradients,
    arXiv:2005.12729).

    Conventions: the factor 1/2 also holds without clipping (`clip=None`).

    Args:
        values [N] of the critic in training, with gradient.
        old_values [N] (before this batch's updates), returns [N]: constants.
        mask [N] bool.
        huber_delta: None for squared errors throughout.
    """
    assert_token_tensors(mask, values=values, old_values=old_values, returns=returns)
    assert_no_gradient(old_values=old_values, returns=returns)
    values = torch.where(mask, values, 0.0)
    old_values = torch.where(mask, old_values, 0.0)
    returns = torch.where(mask, returns, 0.0)
    bound = math.inf if clip is None else clip
    near = torch.clamp(values, old_values - bound, old_values + bound)
    unclipped = _cost(values - returns, huber_delta)
    clipped = _cost(near - returns, huber_delta)
    return ValueLoss(
        per_token=torch.maximum(unclipped, clipped),
        clipped=clipped.detach() > unclipped.detach(),
    )


def _cost(error: Tensor, huber_delta: float | None) -> Tensor:
    squared = 0.5 * error.square()
    if huber_delta is None:
        return squared
    linear = huber_delta * (error.abs() - 0.5 * huber_delta)
    return torch.where(error.abs() <= huber_delta, squared, linear)
