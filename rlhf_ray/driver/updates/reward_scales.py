"""The reward scale of every task, from the summaries that the driver holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_ray.algorithms.equality import BFLOAT16_ULP
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
    """Moments of the unnormalised rewards of every task.

    Attributes:
        mode: see `AlgorithmConfig.reward_normalization`.
        moments: moments by task; empty without normalisation.
        tolerance: see `AlgorithmConfig.reward_tolerance`.
    """

    mode: str
    moments: Mapping[str, RewardMoments]
    tolerance: float

    @property
    def by_task(self) -> dict[str, RewardScale]:
        """The current scale of every task; empty without normalisation."""
        return {
            task: reward_scale(moments, tolerance=self.tolerance)
            for task, moments in self.moments.items()
        }

    @classmethod
    def start(cls, mode: str, *, tolerance: float) -> RewardScales:
        """The scales before the first batch."""
        return cls(mode=mode, moments={}, tolerance=tolerance)

    def observe(self, batch: Batch) -> RewardScales:
        """The scales that normalise this batch; its own rewards are counted.

        Running moments count fresh groups only: replayed groups were counted when they were
        sampled.
        """
        if self.mode == "none":
            return self
        if self.mode == "batch":
            return dataclasses.replace(self, moments=_moments(batch.summaries))
        moments = dict(self.moments)
        for task, found in _moments(batch.fresh_summaries).items():
            moments[task] = merge_moments(moments[task], found) if task in moments else found
        return dataclasses.replace(self, moments=moments)

    def state_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which keeps every bit of them."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, saved: Mapping[str, Any]) -> RewardScales:
        """Restore from `state_dict`."""
        moments = {task: RewardMoments(**fields) for task, fields in saved["moments"].items()}
        # Checkpoints of releases without a tolerance lack this key.
        tolerance = saved.get("tolerance", BFLOAT16_ULP)
        return cls(mode=saved["mode"], moments=moments, tolerance=tolerance)


def _moments(summaries: Sequence[GroupSummary]) -> dict[str, RewardMoments]:
    rewards: dict[str, list[float]] = {}
    for summary in summaries:
        if summary.rewards:
            rewards.setdefault(summary.source, []).extend(summary.rewards)
    return {task: reward_moments(values) for task, values in rewards.items()}
