"""Importance-sampling correction of a batch: the engine sampled it, the learner trains on it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor

from rlhf_ray.algorithms.kl import token_kl
from rlhf_ray.algorithms.policy_losses.correction import (
    effective_sample_size,
    importance_correction,
)
from rlhf_ray.config.groups.algorithm import AlgorithmConfig
from rlhf_ray.experience.rollout_batch import RolloutBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class CorrectedBatch:
    """A batch after the importance-sampling correction.

    Attributes:
        batch: with a smaller loss mask if tokens were rejected.
        importance_weights [N] float32: factors of the tokens' losses; 0 off the mask.
        metrics: flat metric names to numbers.
    """

    batch: RolloutBatch
    importance_weights: Tensor
    metrics: dict[str, float]


def correct(batch: RolloutBatch, algorithm: AlgorithmConfig) -> CorrectedBatch:
    """Apply the configured correction, for which `batch.old_logprobs` must be the learner's.

    Without one every weight is 1.
    """
    mask = batch.loss_mask
    if not algorithm.has_importance_correction:
        return CorrectedBatch(batch=batch, importance_weights=mask.float(), metrics={})
    correction = importance_correction(
        batch.old_logprobs,
        batch.generator_logprobs,
        batch.lengths,
        mask,
        weight=algorithm.correction_weight,
        cap=algorithm.correction_cap,
        keep=algorithm.correction_filter,
        low=algorithm.correction_low,
        high=algorithm.correction_high,
    )
    left_out = (mask & ~correction.kept)[mask].double()
    weights = correction.weights[mask]
    metrics = {
        "correction/effective_sample_size": effective_sample_size(correction.weights, mask),
        "correction/filtered_fraction": _mean(left_out),
        "correction/truncated_fraction": _mean(correction.truncated[mask].double()),
        "correction/weight_mean": _mean(weights),
        "correction/weight_max": float(weights.max()) if weights.numel() else 0.0,
    }
    if algorithm.correction_reject:
        batch = dataclasses.replace(batch, loss_mask=correction.kept)
    return CorrectedBatch(
        batch=batch, importance_weights=correction.weights.float(), metrics=metrics
    )


def learner_generator_metrics(batch: RolloutBatch) -> dict[str, float]:
    """Distance between the log-probabilities of learner and engine on the sampled tokens."""
    mask = batch.loss_mask
    gap = (batch.old_logprobs - batch.generator_logprobs)[mask].abs().double()
    divergence = token_kl(batch.generator_logprobs, batch.old_logprobs, mask, estimator="k3")
    return {
        "rollout/logprob_gap_mean": _mean(gap),
        "rollout/logprob_gap_max": float(gap.max()) if gap.numel() else 0.0,
        # KL(engine || learner), from tokens of the engine.
        "rollout/kl_learner_generator": _mean(divergence[mask].double()),
    }


def _mean(values: Tensor) -> float:
    return float(values.mean()) if values.numel() else 0.0
