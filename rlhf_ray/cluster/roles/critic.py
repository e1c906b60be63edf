"""The critic: values of states, in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_ray.calls import Call
from rlhf_ray.cluster.roles.base import (
    Role,
    call_of,
    rank_resources,
    start_ranks,
)
from rlhf_ray.cluster.roles.checkpointed import TrainedActor, TrainedGroup

if TYPE_CHECKING:
    from rlhf_ray.config.groups.algorithm import AlgorithmConfig
    from rlhf_ray.config.groups.model import ModelConfig
    from rlhf_ray.config.groups.training import CriticConfig
    from rlhf_ray.records import Experience


@dataclass(frozen=True, kw_only=True, slots=True)
class CriticSettings:
    """Settings of a rank; see `training.roles.critic.Critic`."""

    critic: CriticConfig
    algorithm: AlgorithmConfig
    model: ModelConfig
    total_optimizer_steps: int
    seed: int
    timeout_s: float


def critic_role(settings: CriticSettings) -> Role:
    """The critic of a run with generalised advantage estimation."""
    return Role(
        resources=rank_resources("critic", settings.critic),
        actor_class=CriticActor,
        settings=lambda _: settings,
        start=start_ranks,
        ranks_per_sample=settings.critic.ranks_per_sample,
    )


class CriticActor(TrainedActor):
    """One rank of the critic."""

    def __init__(self, settings: CriticSettings) -> None:
        super().__init__()
        from rlhf_ray.training.roles.critic import Critic

        self._worker = Critic(
            critic=settings.critic,
            algorithm=settings.algorithm,
            model=settings.model,
            total_optimizer_steps=settings.total_optimizer_steps,
            seed=settings.seed,
            timeout_s=settings.timeout_s,
        )

    def update(self, experiences: Sequence[Experience]) -> dict[str, float]:
        return self._worker.update(experiences)


class CriticGroup(TrainedGroup):
    """All ranks of the critic."""

    def update(self, experiences: Sequence[Any]) -> list[Call]:
        """One update of the values; `experiences`: a reference per group. Signal: metrics."""
        return [
            call_of(member, member.handle.update.remote(experience))
            for member, experience in self._with_share(experiences)
        ]
