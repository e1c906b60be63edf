"""Estimators of the KL divergence between policy and reference, per sampled token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_token_tensors


def _k1(difference: Tensor) -> Tensor:
    return difference


def _k2(difference: Tensor) -> Tensor:
    return 0.5 * difference.square()


def _k3(difference: Tensor) -> Tensor:
    # expm1: near 0, where policy and reference almost agree, exp(-d) - 1 cancels.
    return torch.expm1(-difference) + difference


_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": _k1, "k2": _k2, "k3": _k3}


def token_kl(
    logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor, *, estimator: str
) -> Tensor:
    """Estimate KL(policy || reference) on every token that the policy sampled.

    With d = log policy(token) - log reference(token):

        k1 = d                     unbiased, may be negative, high variance
        k2 = d^2 / 2               biased, its gradient is that of the divergence
        k3 = exp(-d) - 1 + d       unbiased, never negative, low variance

    Schulman 2020, Approximating KL Divergence, http://joschu.net/blog/kl-approx.html.

    Conventions: none of them is clamped. 0 off the mask.

    Args:
        logprobs [N] (may carry a gradient), reference_logprobs [N], mask [N] bool.
        estimator: "k1", "k2" or "k3".

    Returns:
        [N] in nats.
    """
    assert_token_tensors(mask, logprobs=logprobs, reference_logprobs=reference_logprobs)
    assert estimator in _ESTIMATORS, f"estimator {estimator!r} is not in {sorted(_ESTIMATORS)}"
    # Masked before the estimator: 0 * exp(NaN) in the backward pass would be NaN.
    difference = torch.where(mask, logprobs - reference_logprobs, 0.0)
    return _ESTIMATORS[estimator](difference)
