"""Selection and treatment of the tokens whose update costs the most entropy (Clip-Cov, KL-Cov)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_no_gradient, assert_token_tensors
from rlhf_ray.algorithms.policy_losses.clip import PolicyLoss
from rlhf_ray.algorithms.policy_losses.ratio import Ratio


def token_covariance(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Each token's part of the covariance of log-probability and advantage.

        c_t = (log policy(token) - mean) * (A_t - mean)   means over all tokens of the mask

    Cui et al. 2025, The Entropy Mechanism of Reinforcement Learning for Reasoning Language
    Models, arXiv:2505.22617, equation 10: the entropy falls by their sum.

    Conventions: over the whole batch of an optimiser step and the policy that sampled it, so
    that neither ranks nor micro-batches change the selection.

    Args:
        logprobs [N], advantages [N]: constants; mask [N] bool.

    Returns:
        [N] float64, 0 off the mask.
    """
    assert_token_tensors(mask, logprobs=logprobs, advantages=advantages)
    assert_no_gradient(logprobs=logprobs, advantages=advantages)
    covariance = torch.zeros_like(logprobs, dtype=torch.float64)
    if bool(mask.any()):
        sampled, signal = logprobs[mask].double(), advantages[mask].double()
        covariance[mask] = (sampled - sampled.mean()) * (signal - signal.mean())
    return covariance


def clip_cov_tokens(
    covariance: Tensor, mask: Tensor, *, share: float, low: float, high: float, seed: int
) -> Tensor:
    """A few tokens drawn at random from those with a covariance in (low, high): [N] bool.

    Equation 11 of arXiv:2505.22617: `share` of all tokens of the mask, as far as there are
    candidates. The authors' code takes at least one, and so does this.

    Args:
        covariance [N], mask [N] bool; seed: of the draw.
    """
    assert_token_tensors(mask, covariance=covariance)
    candidates = (mask & (covariance > low) & (covariance < high)).nonzero()[:, 0]
    # In the order of their covariance, so that the order of the samples decides nothing.
    candidates = candidates[covariance[candidates].argsort(stable=True)]
    wanted = max(int(share * int(mask.sum())), 1)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(candidates.shape[0], generator=generator)
    selected = torch.zeros_like(mask)
    selected[candidates[order[:wanted].to(candidates.device)]] = True
    return selected


def kl_cov_tokens(covariance: Tensor, mask: Tensor, *, share: float) -> Tensor:
    """The tokens with the largest covariance: `share` of all, at least one. [N] bool.

    Equation 13 of arXiv:2505.22617. Ties are resolved by order.

    Args:
        covariance [N], mask [N] bool.
    """
    assert_token_tensors(mask, covariance=covariance)
    places = mask.nonzero()[:, 0]
    wanted = max(int(share * places.shape[0]), 1)
    order = covariance[places].argsort(descending=True, stable=True)
    selected = torch.zeros_like(mask)
    selected[places[order[:wanted]]] = True
    return selected


def without_gradient(loss: PolicyLoss, selected: Tensor) -> PolicyLoss:
    """Clip-Cov: the selected tokens add nothing to the loss and to the gradient.

    Equation 12 of arXiv:2505.22617.
    """
    assert_token_tensors(selected, per_token=loss.per_token)
    return dataclasses.replace(
        loss,
        per_token=torch.where(selected, 0.0, loss.per_token),
        clipped=loss.clipped | selected,
    )


def with_kl_penalty(
    loss: PolicyLoss, ratio: Ratio, selected: Tensor, *, coefficient: float
) -> PolicyLoss:
    """KL-Cov: a penalty holds the selected tokens to the old policy.

        loss = loss + coefficient * |log policy(token) - log old(token)|   on selected tokens

    Equation 14 of arXiv:2505.22617, with the divergence of a token estimated by the absolute log
    ratio, as in the authors' code.
    """
    assert_token_tensors(selected, per_token=loss.per_token, log_ratio=ratio.log_ratio)
    penalty = coefficient * torch.where(selected, ratio.log_ratio, 0.0).abs()
    return dataclasses.replace(loss, per_token=loss.per_token + penalty)
