"""What the driver sees of a group: see `records`, where it is imported from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhf_ray.records import SampleFailure


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSummary:
    """What the driver sees of a scored group: per-sample scalars, no per-token data.

    `step_rewards` has the steps of every sample; nothing in a run that does not train on steps.
    """

    prompt_id: str
    stream_index: int
    source: str
    sample_lengths: tuple[int, ...]
    response_lengths: tuple[int, ...]
    finish_reasons: tuple[str, ...]
    rewards: tuple[float, ...]
    reward_parts: dict[str, tuple[float, ...]]
    oldest_version: int
    newest_version: int
    failures: tuple[SampleFailure, ...]
    step_rewards: tuple[tuple[float, ...], ...] = ()

    @property
    def compared(self) -> tuple[float, ...]:
        """What a baseline of the group compares: the rewards of all steps, or of the samples."""
        return tuple(r for steps in self.step_rewards for r in steps) or self.rewards

    def of_first(self, num_samples: int) -> GroupSummary:
        """The same, with the rewards and responses of the first samples alone."""
        return dataclasses.replace(
            self,
            response_lengths=self.response_lengths[:num_samples],
            finish_reasons=self.finish_reasons[:num_samples],
            rewards=self.rewards[:num_samples],
            reward_parts={name: part[:num_samples] for name, part in self.reward_parts.items()},
            step_rewards=self.step_rewards[:num_samples],
        )
