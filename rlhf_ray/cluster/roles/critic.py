"""The critic: actor and facade."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_ray.calls import Call
from rlhf_ray.cluster.roles.base import TrainedActor, TrainedGroup, call_of
from rlhf_ray.records import Experience


class CriticGroup(TrainedGroup):
    """All ranks of the critic."""

    def update(self, experiences: Sequence[Any]) -> list[Call]:
        return [
            call_of(member, member.handle.update.remote(experience))
            for member, experience in zip(self._members, experiences, strict=True)
        ]


class CriticActor(TrainedActor):
    """One rank of the critic."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        from rlhf_ray.training.roles.critic import Critic as Worker

        self._worker = Worker(**settings)

    def update(self, experiences: Sequence[Experience]) -> dict[str, float]:
        return self._worker.update(experiences)
