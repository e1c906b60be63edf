"""The batch of one training step, as the driver holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.records import GroupSummary, SampleFailure


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """References to the groups of one training step, and their summaries.

    Fresh groups come first, in the order of the prompt stream; replayed groups follow.

    Attributes:
        groups: references to scored `RolloutGroup`s.
        summaries: summary of each group.
        failures: failures of the groups that were dropped.
        num_dropped: number of groups that were dropped.
        generate_s, score_s: how long the driver waited for samples, and for scores after the
            last sample.
        num_replayed: number of groups at the end that were trained on before.
        engine_metrics: see `engine_metrics`.
        selection_metrics: metrics of dynamic sampling, over-sampling and replay; empty without
            these.
    """

    groups: tuple[Any, ...]
    summaries: tuple[GroupSummary, ...]
    failures: tuple[SampleFailure, ...]
    num_dropped: int
    generate_s: float
    score_s: float
    num_replayed: int = 0
    selection_metrics: Mapping[str, float] = field(default_factory=dict)
    engine_metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def fresh_groups(self) -> tuple[Any, ...]:
        """References to the groups that were sampled for this step."""
        return self.groups[: len(self.groups) - self.num_replayed]

    @property
    def fresh_summaries(self) -> tuple[GroupSummary, ...]:
        """Summaries of the groups that were sampled for this step."""
        return self.summaries[: len(self.summaries) - self.num_replayed]
