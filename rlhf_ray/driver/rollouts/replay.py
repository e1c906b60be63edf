"""The replay buffer: recent groups with reward variance, trained on once more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rlhf_ray.algorithms.equality import are_equal
from rlhf_ray.config.groups.rollout_selection import RolloutSelectionConfig
from rlhf_ray.records import GroupSummary


class ReplayBuffer:
    """References to at most `replay_capacity` groups; the oldest are forgotten first.

    The value of a group is the variance of its rewards (of its steps, if steps are rewarded),
    because that is the size of the signal for a group baseline. A group is replayed at most once,
    so that a few groups never dominate the batches. The references keep the groups in the object
    store.

    Attributes:
        groups: references and summaries, the oldest first. A checkpoint has these groups.
    """

    def __init__(self, selection: RolloutSelectionConfig, *, reward_tolerance: float) -> None:
        self._num_groups = selection.replay_groups_per_step
        self._capacity = selection.replay_capacity
        self._max_staleness = selection.replay_max_staleness
        self._reward_tolerance = reward_tolerance
        self.groups: list[tuple[Any, GroupSummary]] = []

    def take(self, version: int) -> list[tuple[Any, GroupSummary]]:
        """Take out the most valuable groups, the newest among equals, to replay them now.

        Args:
            version: version of the newest weights. Groups that are too stale are forgotten.
        """
        self.groups = [
            item for item in self.groups if version - item[1].oldest_version <= self._max_staleness
        ]
        by_value = sorted(
            self.groups, key=lambda item: (-_variance(item[1].compared), -item[1].stream_index)
        )
        taken = by_value[: self._num_groups]
        ids = {summary.prompt_id for _, summary in taken}
        self.groups = [item for item in self.groups if item[1].prompt_id not in ids]
        return taken

    def put(self, groups: Sequence[tuple[Any, GroupSummary]]) -> None:
        """Remember the fresh groups of a step that have reward variance."""
        if not self._num_groups:
            return
        self.groups += [
            (group, summary)
            for group, summary in groups
            if not are_equal(summary.compared, self._reward_tolerance)
            and summary.oldest_version >= 0
        ]
        self.groups = self.groups[-self._capacity :]

    def restore(self, groups: Sequence[tuple[Any, GroupSummary]]) -> None:
        """Take over the groups of a checkpoint, as far as this run has room and use for them."""
        self.groups = list(groups[-self._capacity :]) if self._num_groups else []

    def metrics(
        self, taken: Sequence[tuple[Any, GroupSummary]], *, version: int
    ) -> dict[str, float]:
        """Metrics of the replay of one step; empty without replay."""
        if not self._num_groups:
            return {}
        ages = [version - summary.oldest_version for _, summary in taken]
        return {
            "rollout_selection/replayed_groups": float(len(taken)),
            "rollout_selection/replay_staleness_max": float(max(ages, default=0)),
            "rollout_selection/replay_size": float(len(self.groups)),
        }


def _variance(rewards: Sequence[float]) -> float:
    """Biased variance."""
    mean = math.fsum(rewards) / len(rewards)
    return math.fsum((reward - mean) ** 2 for reward in rewards) / len(rewards)
