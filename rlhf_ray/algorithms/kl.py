"""Estimators of the KL divergence between policy and reference, per sampled token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_floating, assert_token_tensors


def _k1(difference: Tensor) -> Tensor:
    return difference


def _k2(difference: Tensor) -> Tensor:
    return 0.5 * difference.square()


# In float32 the exponential overflows at 88.7 nats, and the square of its gradient, which the norm
# needs, at 44.
_FURTHEST = 40.0


def _k3(difference: Tensor) -> Tensor:
    bounded = difference.clamp(-_FURTHEST, _FURTHEST)
    # expm1: near 0, where policy and reference almost agree, exp(-d) - 1 cancels.
    return torch.expm1(-bounded) + bounded


def _absolute(difference: Tensor) -> Tensor:
    return difference.abs()


_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": _k1,
    "k2": _k2,
    "k3": _k3,
    "abs": _absolute,
}
_GRADIENTS = ("estimator", "unbiased")


def token_kl(
    logprobs: Tensor,
    reference_logprobs: Tensor,
    mask: Tensor,
    *,
    estimator: str,
    gradient: str = "estimator",
) -> Tensor:
    """Estimate KL(policy || reference) on every token that the policy sampled.

    With d = log policy(token) - log reference(token):

        k1  = d                     unbiased, may be negative, high variance
        k2  = d^2 / 2               biased, its gradient is that of the divergence
        k3  = exp(-d) - 1 + d       unbiased, never negative, low variance
        abs = |d|                   no divergence: a bound on the change of a log-probability

    Schulman 2020, Approximating KL Divergence, http://joschu.net/blog/kl-approx.html.

    An unbiased estimate of the divergence need not have an unbiased gradient: on tokens of the
    policy itself the gradient of k1 averages to 0, that of k3 to the gradient of
    KL(reference || policy). That of k2 averages to the gradient of KL(policy || reference):
    gradient "unbiased" gives every estimator that one and leaves its value as it is.

    Conventions: k3 bounds d at +-40 nats and has no gradient beyond, so that one token that the
    policy finds impossible cannot make a batch infinite in float32. The others are not bounded.
    0 off the mask.

    Args:
        logprobs [N] (may carry a gradient), reference_logprobs [N], mask [N] bool.
        estimator: "k1", "k2", "k3" or "abs".
        gradient: "estimator", its own; "unbiased", that of k2.

    Returns:
        [N] in nats.
    """
    assert_token_tensors(mask, logprobs=logprobs, reference_logprobs=reference_logprobs)
    assert estimator in _ESTIMATORS, f"estimator {estimator!r} is not in {sorted(_ESTIMATORS)}"
    assert gradient in _GRADIENTS, f"gradient {gradient!r} is not in {_GRADIENTS}"
    # Masked before the estimator: 0 * exp(NaN) in the backward pass would be NaN.
    difference = torch.where(mask, logprobs - reference_logprobs, 0.0)
    if gradient == "estimator":
        return _ESTIMATORS[estimator](difference)
    surrogate = _k2(difference)
    # In brackets: the k2 of a far token would take the last digits of the value with it.
    return _ESTIMATORS[estimator](difference.detach()) + (surrogate - surrogate.detach())


def full_kl(logits: Tensor, reference_logits: Tensor, mask: Tensor) -> Tensor:
    """KL(policy || reference) of every token's whole distribution, not of the sampled token.

        sum over the vocabulary of p * (log p - log q)

    Conventions: in float32 or wider. A token that the policy cannot choose (-inf) adds 0.

    Args:
        logits [N, V] (may carry a gradient), reference_logits [N, V], mask [N] bool.

    Returns:
        [N] in nats, never negative but for rounding; 0 off the mask.
    """
    assert_token_tensors(mask)
    assert_floating("logits", logits, (mask.shape[0], logits.shape[-1]))
    assert_floating("reference_logits", reference_logits, logits.shape)
    wide = torch.promote_types(logits.dtype, torch.float32)
    # Masked before the softmax, whose backward pass would spread a NaN.
    kept, reference = (
        torch.where(mask[:, None], part.to(wide), 0.0) for part in (logits, reference_logits)
    )
    logprobs, reference_logprobs = kept.log_softmax(dim=1), reference.log_softmax(dim=1)
    possible = ~torch.isneginf(logprobs)
    difference = torch.where(possible, logprobs, 0.0) - torch.where(
        possible, reference_logprobs, 0.0
    )
    return (logprobs.exp() * difference).sum(dim=1)
