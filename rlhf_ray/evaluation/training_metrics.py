"""Measures of held-out answers as metrics of a training step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_ray.evaluation.answers import MODES, PromptAnswers
from rlhf_ray.evaluation.evaluation_report import ReportSettings, describe_kl, describe_mode


def flat_metrics(
    prompts: Sequence[PromptAnswers], settings: ReportSettings, *, prefix: str
) -> dict[str, float]:
    """Measures of answers as flat metrics, such as `evaluation/greedy/reward/mean`."""
    metrics: dict[str, float | None] = {}
    for mode in MODES:
        described = describe_mode(prompts, mode, settings)
        if described is not None:
            metrics |= _flat_mode(described, f"{prefix}/{mode}")
    kl = describe_kl(prompts)
    if kl is not None:
        metrics[f"{prefix}/kl/reference"] = kl["per_token"]
    return {name: math.nan if value is None else value for name, value in metrics.items()}


def _flat_mode(described: Mapping[str, Any], prefix: str) -> dict[str, float | None]:
    metrics = {
        f"{prefix}/reward/mean": described["reward"]["mean"],
        f"{prefix}/reward/standard_error": described["reward"]["standard_error"],
        f"{prefix}/success_share": described["success_share"]["mean"],
        f"{prefix}/response/length_mean": described["length"]["mean"],
        f"{prefix}/response/truncated_fraction": described["truncated_share"],
        f"{prefix}/repeated_share": described["repeated_share"],
    }
    for name, part in described["reward_parts"].items():
        metrics[f"{prefix}/reward/{name}"] = part["mean"]
    for task, reward in described["tasks"].items() if len(described["tasks"]) > 1 else ():
        metrics[f"{prefix}/reward/mean/{task}"] = reward["mean"]
    for k, passed in described["pass_at_k"].items():
        metrics[f"{prefix}/pass_at_{k}"] = passed["mean"]
    for n, share in described["distinct"].items():
        metrics[f"{prefix}/distinct_{n}"] = share
    return metrics
