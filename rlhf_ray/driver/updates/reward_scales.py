"""The scale of every task's rewards, which the driver knows from its summaries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_ray.algorithms.rewards.task_rewards import (
    RewardMoments,
    RewardScale,
    merge_moments,
    reward_moments,
    reward_scale,
)
from rlhf_ray.driver.rollouts.batch import Batch
from rlhf_ray.records import GroupSummary


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardScales:
    """Moments of the rewards of every task, as scored.

    Attributes:
        mode: `AlgorithmConfig.reward_normalization`.
        moments: by task; empty where nothing is normalised.
    """

    mode: str
    moments: Mapping[str, RewardMoments]

    @property
    def by_task(self) -> dict[str, RewardScale]:
        """What is in force; empty where nothing is normalised."""
        return {task: reward_scale(moments) for task, moments in self.moments.items()}


def start_reward_scales(mode: str) -> RewardScales:
    """Before the first batch."""
    return RewardScales(mode=mode, moments={})


def observe_rewards(scales: RewardScales, batch: Batch) -> RewardScales:
    """The scales by which this batch is normalised, its own rewards counted in.

    Running moments take fresh groups alone: replayed ones were counted when they were sampled.
    """
    if scales.mode == "none":
        return scales
    if scales.mode == "batch":
        return dataclasses.replace(scales, moments=_moments(batch.summaries))
    moments = dict(scales.moments)
    for task, found in _moments(batch.fresh_summaries).items():
        moments[task] = merge_moments(moments[task], found) if task in moments else found
    return dataclasses.replace(scales, moments=moments)


def save_reward_scales(scales: RewardScales) -> dict[str, Any]:
    """Plain values; JSON gives back every number as it was."""
    return dataclasses.asdict(scales)


def load_reward_scales(saved: Mapping[str, Any]) -> RewardScales:
    """What `save_reward_scales` made."""
    moments = {task: RewardMoments(**fields) for task, fields in saved["moments"].items()}
    return RewardScales(mode=saved["mode"], moments=moments)


def _moments(summaries: Sequence[GroupSummary]) -> dict[str, RewardMoments]:
    rewards: dict[str, list[float]] = {}
    for summary in summaries:
        if summary.rewards:
            rewards.setdefault(summary.source, []).extend(summary.rewards)
    return {task: reward_moments(values) for task, values in rewards.items()}
