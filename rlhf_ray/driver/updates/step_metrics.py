"""Metrics that the driver computes from the summaries of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlhf_ray.driver.rollouts.batch import Batch
from rlhf_ray.records import Coefficients


def batch_metrics(batch: Batch, *, version: int) -> dict[str, float]:
    """Rewards, lengths, staleness and failures of the fresh groups of a batch.

    With several tasks also `reward/mean/<task>` and `reward/std/<task>`.

    Args:
        version: version of the newest published weights.
    """
    summaries = batch.fresh_summaries
    rewards = [reward for summary in summaries for reward in summary.rewards]
    lengths = [length for summary in summaries for length in summary.response_lengths]
    reasons = [reason for summary in summaries for reason in summary.finish_reasons]
    sampled = [summary for summary in summaries if summary.oldest_version >= 0]
    parts = sorted({name for summary in summaries for name in summary.reward_parts})
    tasks = sorted({summary.source for summary in summaries})
    metrics = {
        "reward/mean": _mean(rewards),
        "reward/std": _std(rewards),
        "response/length_mean": _mean(lengths),
        "response/truncated_fraction": _mean([reason == "length" for reason in reasons]),
        "rollout/staleness_max": float(
            max((version - summary.oldest_version for summary in sampled), default=0)
        ),
        "rollout/failed_groups": float(batch.num_dropped),
        "tokens/generated": float(sum(lengths)),
    }
    for name in parts:
        values = [v for s in summaries for v in s.reward_parts.get(name, ())]
        metrics[f"reward/{name}"] = _mean(values)
    for task in tasks if len(tasks) > 1 else ():
        values = [reward for s in summaries if s.source == task for reward in s.rewards]
        metrics[f"reward/mean/{task}"] = _mean(values)
        metrics[f"reward/std/{task}"] = _std(values)
    return metrics | dict(batch.selection_metrics) | dict(batch.engine_metrics)


def coefficient_metrics(coefficients: Coefficients) -> dict[str, float]:
    """The coefficients that a step used."""
    metrics = {
        "kl/coefficient": coefficients.kl,
        "policy/entropy_coefficient": coefficients.entropy,
        "reward/baseline": coefficients.reward_baseline,
    }
    for task, scale in coefficients.reward_scales.items():
        metrics[f"reward/shift/{task}"] = scale.mean
        metrics[f"reward/scale/{task}"] = scale.deviation
    return metrics


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _std(values: Sequence[float]) -> float:
    """Unbiased standard deviation; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
