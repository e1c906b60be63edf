"""What one training step trains on, as the driver holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.records import GroupSummary, SampleFailure


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The groups of one training step: fresh ones in the order of the prompt stream, then
    replayed ones.

    Attributes:
        groups: references to scored `RolloutGroup`s.
        summaries: of each group.
        failures: of groups that were dropped on the way.
        num_dropped: how many those are.
        generate_s, score_s: how long the driver waited for samples, and for scores after the
            last sample.
        num_replayed: how many groups at the end were trained on before.
        sampling_metrics: how the batch was put together; empty without sampling control.
    """

    groups: tuple[Any, ...]
    summaries: tuple[GroupSummary, ...]
    failures: tuple[SampleFailure, ...]
    num_dropped: int
    generate_s: float
    score_s: float
    num_replayed: int = 0
    sampling_metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def fresh_groups(self) -> tuple[Any, ...]:
        """References to the groups that were sampled for this step."""
        return self.groups[: len(self.groups) - self.num_replayed]

    @property
    def fresh_summaries(self) -> tuple[GroupSummary, ...]:
        """Of the groups that were sampled for this step."""
        return self.summaries[: len(self.summaries) - self.num_replayed]
