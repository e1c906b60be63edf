"""The table of policy losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rlhf_ray.algorithms.policy_losses.cispo import cispo_loss
from rlhf_ray.algorithms.policy_losses.clip import PolicyLoss, clipped_loss, unclipped_loss
from rlhf_ray.algorithms.policy_losses.covariance import with_kl_penalty, without_gradient
from rlhf_ray.algorithms.policy_losses.gmpo import gmpo_loss
from rlhf_ray.algorithms.policy_losses.ratio import Ratio, probability_ratio
from rlhf_ray.algorithms.policy_losses.sapo import sapo_loss
from rlhf_ray.config.groups.algorithm import AlgorithmConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictedTokens:
    """The predicted tokens of one micro-batch, whole sequences side by side.

    Attributes:
        logprobs [M] with gradient; old_logprobs [M], advantages [M]: constants.
        lengths [S] int64: predicted tokens of each sequence, summing to M.
        mask [M] bool.
        covariance_selected [M] bool: see `Experience`.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    lengths: Tensor
    mask: Tensor
    covariance_selected: Tensor


_PolicyLoss = Callable[[PredictedTokens, Ratio, AlgorithmConfig], PolicyLoss]


def _clip(tokens: PredictedTokens, ratio: Ratio, algorithm: AlgorithmConfig) -> PolicyLoss:
    return clipped_loss(
        ratio,
        tokens.advantages,
        tokens.mask,
        clip_low=algorithm.clip_ratio_low,
        clip_high=algorithm.clip_ratio_high,
        dual_clip=algorithm.dual_clip,
    )


def _unclipped(tokens: PredictedTokens, ratio: Ratio, _: AlgorithmConfig) -> PolicyLoss:
    return unclipped_loss(ratio, tokens.advantages, tokens.mask)


def _cispo(tokens: PredictedTokens, ratio: Ratio, algorithm: AlgorithmConfig) -> PolicyLoss:
    return cispo_loss(
        tokens.logprobs,
        ratio,
        tokens.advantages,
        tokens.mask,
        clip_low=algorithm.clip_ratio_low,
        clip_high=algorithm.clip_ratio_high,
    )


def _sapo(tokens: PredictedTokens, ratio: Ratio, algorithm: AlgorithmConfig) -> PolicyLoss:
    return sapo_loss(
        ratio,
        tokens.advantages,
        tokens.mask,
        positive_temperature=algorithm.sapo_positive_temperature,
        negative_temperature=algorithm.sapo_negative_temperature,
    )


def _gmpo(tokens: PredictedTokens, ratio: Ratio, algorithm: AlgorithmConfig) -> PolicyLoss:
    return gmpo_loss(
        ratio,
        tokens.advantages,
        tokens.lengths,
        tokens.mask,
        clip_low=algorithm.clip_ratio_low,
        clip_high=algorithm.clip_ratio_high,
        log_ratio_clamp=algorithm.log_ratio_clamp,
    )


def _clip_cov(tokens: PredictedTokens, ratio: Ratio, algorithm: AlgorithmConfig) -> PolicyLoss:
    return without_gradient(_clip(tokens, ratio, algorithm), tokens.covariance_selected)


def _kl_cov(tokens: PredictedTokens, ratio: Ratio, algorithm: AlgorithmConfig) -> PolicyLoss:
    return with_kl_penalty(
        _unclipped(tokens, ratio, algorithm),
        ratio,
        tokens.covariance_selected,
        coefficient=algorithm.covariance_kl_coefficient,
    )


POLICY_LOSSES: dict[str, _PolicyLoss] = {
    "clip": _clip,
    "unclipped": _unclipped,
    "cispo": _cispo,
    "sapo": _sapo,
    "gmpo": _gmpo,
    "clip_cov": _clip_cov,
    "kl_cov": _kl_cov,
}


def surrogate(tokens: PredictedTokens, algorithm: AlgorithmConfig) -> PolicyLoss:
    """The configured policy loss of every token."""
    ratio = probability_ratio(
        tokens.logprobs,
        tokens.old_logprobs,
        tokens.lengths,
        tokens.mask,
        level=algorithm.ratio_level,
        log_ratio_clamp=algorithm.log_ratio_clamp,
    )
    return POLICY_LOSSES[algorithm.policy_loss](tokens, ratio, algorithm)
