"""Policy and value objectives: one micro-batch's share of the loss and of the metrics.

Pure functions of the predicted tokens of a micro-batch. Loss and metrics are shares: their sum
over micro-batches and ranks is the loss or metric of the whole optimiser step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.algorithms.kl import full_kl, token_kl
from rlhf_ray.algorithms.reduce import mean_share, reduce_tokens
from rlhf_ray.algorithms.value_loss import value_loss
from rlhf_ray.config.groups.algorithm import AlgorithmConfig, OldLogprobsFrom
from rlhf_ray.objectives.policy_losses import PredictedTokens, surrogate
from rlhf_ray.records import Coefficients, Experience


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """One micro-batch's share of an optimiser step.

    Attributes:
        loss: scalar with gradient.
        sums: metric name to this micro-batch's share of its mean over tokens.
        maxima: metric name to this micro-batch's maximum.
    """

    loss: Tensor
    sums: dict[str, Tensor]
    maxima: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Predicted:
    """Log-probabilities and entropies of the M predicted tokens of a micro-batch.

    Attributes:
        logprobs [M], with gradient.
        entropy [M], with gradient if it has a bonus.
        support_logprobs [M, K], with gradient: over the support of the sampling distribution,
            -inf on filled up entries; None if the loss needs the sampled tokens alone.
    """

    logprobs: Tensor
    entropy: Tensor
    support_logprobs: Tensor | None = None


def policy_objective(
    predicted: Predicted,
    experience: Experience,
    token_index: Tensor,
    *,
    algorithm: AlgorithmConfig,
    coefficients: Coefficients,
    constant_length: int,
    compare_with_generator: bool,
) -> Objective:
    """The policy loss, KL penalty, entropy bonus and likelihood of tokens of positive advantage.

    Args:
        token_index [M]: places of the predicted tokens in `experience`; the tokens of a sequence
            are side by side.
        coefficients: `kl` is the weight of the penalty in the loss.
        constant_length: tokens of the longest answer, for the reduction of that name.
        compare_with_generator: measure the distance to the engine's log-probabilities. It has no
            meaning after the weights have changed.
    """
    logprobs, entropy = predicted.logprobs, predicted.entropy
    tokens = _predicted(logprobs, experience, token_index)
    mask, current, old = tokens.mask, logprobs.detach(), tokens.old_logprobs
    policy = surrogate(tokens, algorithm)

    def share(values: Tensor) -> Tensor:
        return mean_share(values, mask, experience.num_loss_tokens)

    def reduced(values: Tensor) -> Tensor:
        reduction = algorithm.reduction
        return _reduced(values, tokens, experience, reduction, constant_length)

    loss = reduced(policy.per_token * experience.importance_weights[token_index])
    sums = {
        "policy/loss": loss.detach(),
        "policy/entropy": share(entropy.detach()),
        "policy/clip_fraction": share(policy.clipped),
        "policy/log_ratio_clamped_fraction": share(policy.clamped),
        # KL(old || current), from tokens of the old policy.
        "policy/approx_kl": share(token_kl(old, current, mask, estimator="k3")),
    }
    if coefficients.kl > 0:
        kl = _kl(predicted, experience, token_index, algorithm)
        penalty = coefficients.kl * reduced(kl)
        loss = loss + penalty
        sums["kl/loss"] = penalty.detach()
    if coefficients.entropy > 0:
        loss = loss - coefficients.entropy * reduced(entropy)
    if algorithm.nll_coefficient > 0:
        likelihood = mean_share(-logprobs, tokens.advantages > 0, experience.num_positive_tokens)
        loss = loss + algorithm.nll_coefficient * likelihood
        sums["policy/nll_loss"] = likelihood.detach()
    maxima = {}
    if compare_with_generator:
        distance = (current - experience.generator_logprobs[token_index]).abs()
        sums["rollout/logprob_gap_mean"] = share(distance)
        maxima["rollout/logprob_gap_max"] = distance.max() if distance.numel() else distance.sum()
    return Objective(loss=loss, sums=sums, maxima=maxima)


def _reduced(
    values: Tensor,
    tokens: PredictedTokens,
    experience: Experience,
    reduction: str,
    constant_length: int,
) -> Tensor:
    return reduce_tokens(
        values,
        tokens.lengths,
        tokens.mask,
        reduction=reduction,
        num_tokens=experience.num_loss_tokens,
        num_sequences=experience.num_sequences,
        constant_length=constant_length,
    )


def _kl(
    predicted: Predicted, experience: Experience, token_index: Tensor, algorithm: AlgorithmConfig
) -> Tensor:
    """KL from the reference at every predicted token [M]."""
    mask = torch.ones_like(predicted.logprobs, dtype=torch.bool)
    if algorithm.kl_estimator == "full":
        reference = experience.reference_support_logprobs
        assert predicted.support_logprobs is not None, "no distributions of the policy"
        assert reference is not None, "no distributions of the reference"
        return full_kl(predicted.support_logprobs, reference[token_index], mask)
    return token_kl(
        predicted.logprobs,
        experience.reference_logprobs[token_index],
        mask,
        estimator=algorithm.kl_estimator,
        gradient=algorithm.kl_gradient,
    )


def _predicted(logprobs: Tensor, experience: Experience, token_index: Tensor) -> PredictedTokens:
    sequence = torch.repeat_interleave(experience.lengths)[token_index]
    is_current = experience.old_logprobs_from is OldLogprobsFrom.LEARNER_IN_UPDATE
    return PredictedTokens(
        logprobs=logprobs,
        old_logprobs=logprobs.detach() if is_current else experience.old_logprobs[token_index],
        advantages=experience.advantages[token_index],
        lengths=torch.unique_consecutive(sequence, return_counts=True)[1],
        mask=torch.ones_like(logprobs, dtype=torch.bool),
        covariance_selected=experience.covariance_selected[token_index],
    )


def value_objective(
    values: Tensor, experience: Experience, token_index: Tensor, *, algorithm: AlgorithmConfig
) -> Objective:
    """The share of the clipped error of the values [M] of the predicted tokens."""
    mask = torch.ones_like(values, dtype=torch.bool)
    per_token = value_loss(
        values,
        experience.values[token_index],
        experience.returns[token_index],
        mask,
        clip=algorithm.value_clip,
        huber_delta=algorithm.value_huber_delta,
    )
    loss = mean_share(per_token.per_token, mask, experience.num_loss_tokens)
    clipped = mean_share(per_token.clipped, mask, experience.num_loss_tokens)
    sums = {"value/loss": loss.detach(), "value/clip_fraction": clipped}
    return Objective(loss=loss, sums=sums, maxima={})
