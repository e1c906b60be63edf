"""From one micro-batch's forward pass to its share of the loss and of the metrics.

Pure functions of the predicted tokens of a micro-batch. Loss and metrics are shares: their sum
over micro-batches and ranks is the mean over all sampled tokens of the optimiser step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.algorithms.kl import token_kl
from rlhf_ray.algorithms.policy_loss import policy_loss
from rlhf_ray.algorithms.reduce import masked_mean
from rlhf_ray.algorithms.value_loss import value_loss
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.records import Experience


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """One micro-batch's share of an optimiser step.

    Attributes:
        loss: scalar with gradient.
        sums: metric name to this micro-batch's share of its mean.
        maxima: metric name to this micro-batch's maximum.
    """

    loss: Tensor
    sums: dict[str, Tensor]
    maxima: dict[str, Tensor]


def policy_objective(
    logprobs: Tensor,
    entropy: Tensor,
    experience: Experience,
    token_index: Tensor,
    *,
    algorithm: AlgorithmConfig,
    kl_coefficient: float,
    compare_with_generator: bool,
) -> Objective:
    """Clipped surrogate, plus the KL penalty where the algorithm has it in the loss.

    Args:
        logprobs [M] (with gradient), entropy [M]: of this micro-batch's predicted tokens.
        token_index [M]: where those are in `experience`.
        kl_coefficient: of the penalty in the loss; 0 leaves it out.
        compare_with_generator: measure the gap to the engine's log-probabilities. Means nothing
            after the weights have changed.
    """
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    current = logprobs.detach()
    old = current if experience.old_is_current else experience.old_logprobs[token_index]
    surrogate = policy_loss(
        logprobs,
        old,
        experience.advantages[token_index],
        mask,
        clip_low=algorithm.clip_ratio_low,
        clip_high=algorithm.clip_ratio_high,
        log_ratio_clamp=algorithm.log_ratio_clamp,
    )

    def share(values: Tensor) -> Tensor:
        return masked_mean(values, mask, experience.num_loss_tokens)

    loss = share(surrogate.per_token)
    sums = {
        "policy/loss": loss.detach(),
        "policy/entropy": share(entropy),
        "policy/clip_fraction": share(surrogate.clipped),
        "policy/log_ratio_clamped_fraction": share(surrogate.clamped),
        # KL(old || current), from tokens of the old policy.
        "policy/kl_old": share(token_kl(old, current, mask, estimator="k3")),
    }
    maxima = {}
    if kl_coefficient > 0:
        reference = experience.reference_logprobs[token_index]
        kl = token_kl(logprobs, reference, mask, estimator=algorithm.kl_estimator)
        penalty = kl_coefficient * share(kl)
        loss = loss + penalty
        sums["kl/loss"] = penalty.detach()
    if compare_with_generator:
        gap = (current - experience.generator_logprobs[token_index]).abs()
        sums["rollout/logprob_gap_mean"] = share(gap)
        maxima["rollout/logprob_gap_max"] = gap.max() if gap.numel() else gap.sum()
    return Objective(loss=loss, sums=sums, maxima=maxima)


def value_objective(
    values: Tensor, experience: Experience, token_index: Tensor, *, algorithm: AlgorithmConfig
) -> Objective:
    """Clipped squared error of the values [M] of this micro-batch's predicted tokens."""
    mask = torch.ones_like(values, dtype=torch.bool)
    per_token = value_loss(
        values,
        experience.values[token_index],
        experience.returns[token_index],
        mask,
        clip=algorithm.value_clip,
    )
    loss = masked_mean(per_token.per_token, mask, experience.num_loss_tokens)
    clipped = masked_mean(per_token.clipped, mask, experience.num_loss_tokens)
    sums = {"value/loss": loss.detach(), "value/clip_fraction": clipped}
    return Objective(loss=loss, sums=sums, maxima={})
