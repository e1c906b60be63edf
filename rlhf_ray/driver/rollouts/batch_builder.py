"""A batch that is not complete yet: the groups in it, and the groups that are still wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_ray.algorithms.equality import are_equal
from rlhf_ray.config.groups.rollout_selection import RolloutSelectionConfig
from rlhf_ray.records import GroupSummary, Prompt, SampleFailure


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredGroup:
    """A scored group of a prompt: a reference and its summary."""

    prompt: Prompt
    group: Any
    summary: GroupSummary


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """The groups chosen for a complete batch. All fields are in the order of the prompt stream.

    Attributes:
        kept: groups to train on.
        spare: scored groups that the batch does not need.
        settled: summaries of the prompts that are done: kept ones, and those without variance.
    """

    kept: tuple[ScoredGroup, ...]
    spare: tuple[ScoredGroup, ...]
    settled: tuple[GroupSummary, ...]


class BatchBuilder:
    """Collects the groups of one batch.

    Args:
        prompts: prompts that the batch starts with: `size`, or more with over-sampling.
        size: number of groups that the batch needs.
        urgent: stream indices of prompts that must be in the batch.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        size: int,
        selection: RolloutSelectionConfig,
        reward_tolerance: float,
        urgent: Sequence[int] = (),
    ) -> None:
        self.prompts = list(prompts)
        self.failures: list[SampleFailure] = []
        self.num_dropped = 0
        self._size = size
        self._selection = selection
        self._reward_tolerance = reward_tolerance
        self._urgent = frozenset(urgent)
        self._awaited = set(urgent)
        # Both in the order in which the groups were scored.
        self._good: list[ScoredGroup] = []
        self._uniform: list[ScoredGroup] = []
        self._num_replaced = 0

    def restore(
        self, groups: Sequence[ScoredGroup], *, failures: Sequence[SampleFailure], num_dropped: int
    ) -> None:
        """Take over what a batch had when it was saved, the groups in the order of `groups`."""
        self.failures = list(failures)
        self.num_dropped = num_dropped
        for scored in groups:
            self.add(scored)
        # Replaced groups stay as stopgaps, and are the oldest of them; see `replace`.
        own = {prompt.prompt_id for prompt in self.prompts}
        self._num_replaced = sum(scored.prompt.prompt_id not in own for scored in groups)

    @property
    def groups(self) -> list[ScoredGroup]:
        """The scored groups, in an order that `restore` understands."""
        return [*self._good, *self._uniform]

    def add(self, scored: ScoredGroup) -> None:
        """Add a group. With dynamic sampling, a group without variance is only a stopgap."""
        self._awaited.discard(scored.prompt.stream_index)
        is_stopgap = self._selection.dynamic and not self._has_variance(scored)
        (self._uniform if is_stopgap else self._good).append(scored)

    def drop(self, prompt: Prompt, failures: Sequence[SampleFailure], instead: Prompt) -> None:
        """Drop a group with a failed sample; the prompt `instead` takes its place."""
        self._awaited.discard(prompt.stream_index)
        self.num_dropped += 1
        self.failures.extend(failures)
        self.prompts = [p for p in self.prompts if p is not prompt] + [instead]

    def num_to_replace(self, num_in_flight: int) -> int:
        """Number of prompts to start now in place of groups without variance.

        Args:
            num_in_flight: groups of this batch that are still sampled or scored.
        """
        lacking = self._size - len(self._good) - num_in_flight
        allowed = self._selection.max_replacements_per_step - self._num_replaced
        return max(0, min(lacking, allowed))

    def replace(self, prompts: Sequence[Prompt]) -> None:
        """Note that `prompts` were started in place of groups without variance.

        They replace the oldest groups that have no replacement yet. These groups stay as
        stopgaps, but their prompts no longer belong to the batch.
        """
        gone = {id(s.prompt) for s in self._uniform[self._num_replaced :][: len(prompts)]}
        self._num_replaced += len(prompts)
        self.prompts = [p for p in self.prompts if id(p) not in gone] + list(prompts)

    def is_complete(self, num_in_flight: int) -> bool:
        """Whether the batch can be handed out although some of its groups are in flight."""
        is_full = len(self._good) >= self._size
        return not num_in_flight or (is_full and not self._awaited)

    def select(self) -> Selection:
        """Select the groups scored first; urgent ones come before, those without variance last."""
        good = sorted(self._good, key=lambda s: s.prompt.stream_index not in self._urgent)
        kept = good[: self._size]
        kept += sorted(self._uniform, key=_place)[: self._size - len(kept)]
        done = {id(scored) for scored in [*kept, *self._uniform]}
        spare = [scored for scored in self._good if id(scored) not in done]
        settled = [scored for scored in [*self._good, *self._uniform] if id(scored) in done]
        return Selection(
            kept=tuple(sorted(kept, key=_place)),
            spare=tuple(sorted(spare, key=_place)),
            settled=tuple(scored.summary for scored in sorted(settled, key=_place)),
        )

    def metrics(self, selected: Selection, *, num_cancelled: int) -> dict[str, float]:
        """Metrics of dynamic sampling and over-sampling; empty without these."""
        metrics: dict[str, float] = {}
        if self._selection.dynamic:
            num_scored = len(self._good) + len(self._uniform)
            metrics = {
                "rollout_selection/replaced_groups": float(self._num_replaced),
                "rollout_selection/zero_variance_fraction": len(self._uniform) / num_scored,
                "rollout_selection/zero_variance_kept": float(
                    sum(not self._has_variance(scored) for scored in selected.kept)
                ),
            }
        if self._selection.oversample > 1:
            metrics["rollout_selection/cancelled_groups"] = float(num_cancelled)
            metrics["rollout_selection/spare_groups"] = float(len(selected.spare))
        return metrics

    def _has_variance(self, scored: ScoredGroup) -> bool:
        """Whether any two samples (or steps) of a group have different rewards."""
        return not are_equal(scored.summary.compared, self._reward_tolerance)


def _place(scored: ScoredGroup) -> int:
    return scored.prompt.stream_index
