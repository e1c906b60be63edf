"""The ranks of a stage that learns from examples: SFT, reward models, preferences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_ray.calls import Call
from rlhf_ray.cluster.roles.base import (
    Role,
    call_of,
    rank_resources,
    start_ranks,
)
from rlhf_ray.cluster.roles.checkpointed import TrainedActor, TrainedGroup
from rlhf_ray.disk_space import full_disk_said

if TYPE_CHECKING:
    from rlhf_ray.config.groups.fit import PreferenceConfig, RewardModelConfig
    from rlhf_ray.config.groups.model import ModelConfig
    from rlhf_ray.config.groups.training import TrainingConfig
    from rlhf_ray.training.roles.base import RoleArguments


@dataclass(frozen=True, kw_only=True, slots=True)
class OfflineSettings:
    """Settings of a rank; see `training.roles.base.TrainedRole`.

    Attributes:
        preference, reward_model: for the stage of that name.
    """

    training: TrainingConfig
    model: ModelConfig
    total_optimizer_steps: int
    seed: int
    timeout_s: float
    preference: PreferenceConfig
    reward_model: RewardModelConfig


def offline_role(settings: OfflineSettings, actor_class: type[OfflineActor]) -> Role:
    """The ranks of the stage whose actor is `actor_class`."""
    return Role(
        resources=rank_resources("learner", settings.training),
        actor_class=actor_class,
        settings=lambda _: settings,
        start=start_ranks,
        ranks_per_sample=settings.training.ranks_per_sample,
    )


def _shared(settings: OfflineSettings) -> RoleArguments:
    """The arguments that every trainer takes."""
    return {
        "training": settings.training,
        "model": settings.model,
        "total_optimizer_steps": settings.total_optimizer_steps,
        "seed": settings.seed,
        "timeout_s": settings.timeout_s,
    }


class OfflineActor(TrainedActor):
    """One rank; subclasses make the worker."""

    def update(self, steps: Sequence[Any]) -> dict[str, float]:
        return self._worker.update(steps)

    def evaluate(self, samples: Any) -> dict[str, float]:
        return self._worker.evaluate(samples)

    def save_model(self, folder: Path) -> None:
        with full_disk_said(folder):
            self._worker.save_model(folder)


class SftActor(OfflineActor):
    """One rank of a language model that learns from texts or demonstrations."""

    def __init__(self, settings: OfflineSettings) -> None:
        super().__init__()
        from rlhf_ray.training.roles.sft_trainer import SftTrainer

        self._worker = SftTrainer(**_shared(settings))


class RewardModelTrainerActor(OfflineActor):
    """One rank of a reward model that learns from rankings."""

    def __init__(self, settings: OfflineSettings) -> None:
        super().__init__()
        from rlhf_ray.training.roles.reward_model_trainer import RewardModelTrainer

        self._worker = RewardModelTrainer(
            centring_coefficient=settings.reward_model.centring_coefficient, **_shared(settings)
        )


class ComparedActor(OfflineActor):
    """One rank of a policy with a loss relative to the model that it starts from."""

    def score_answers(self, samples: Any) -> list[float]:
        return self._worker.score_answers(samples)


class PreferenceTrainerActor(ComparedActor):
    """One rank of a policy that learns from rankings."""

    def __init__(self, settings: OfflineSettings) -> None:
        super().__init__()
        from rlhf_ray.training.roles.preference_trainer import PreferenceTrainer

        self._worker = PreferenceTrainer(preference=settings.preference, **_shared(settings))


class FeedbackTrainerActor(ComparedActor):
    """One rank of a policy that learns from feedback."""

    def __init__(self, settings: OfflineSettings) -> None:
        super().__init__()
        from rlhf_ray.training.roles.preference_trainer import FeedbackTrainer

        self._worker = FeedbackTrainer(preference=settings.preference, **_shared(settings))


class OfflineGroup(TrainedGroup):
    """All ranks of a model that learns from examples."""

    def score_answers(self, samples: Sequence[Any]) -> list[Call]:
        """Score answers, which `samples` has for each group of ranks.

        Returns:
            a call per group. Signal: a number for each of its answers.
        """
        asked = [
            call_of(member, member.handle.score_answers.remote(own))
            for member, own in self._with_share(samples)
        ]
        size = self._ranks_per_sample
        return [_of_all(asked[first : first + size]) for first in range(0, len(asked), size)]

    def update(self, samples: Sequence[Any]) -> list[Call]:
        """One optimiser step; `samples`: of each group. Signal: metrics, the same on all ranks."""
        return [
            call_of(member, member.handle.update.remote([own]))
            for member, own in self._with_share(samples)
        ]

    def evaluate(self, samples: Sequence[Any]) -> list[Call]:
        """`samples`: those of each group. Signal: metrics, the same on all ranks."""
        return [
            call_of(member, member.handle.evaluate.remote(own))
            for member, own in self._with_share(samples)
        ]

    def save_model(self, folder: Path) -> list[Call]:
        return [call_of(m, m.handle.save_model.remote(folder)) for m in self._members]


def _of_all(calls: Sequence[Call]) -> Call:
    """The first of calls with the same result; the failure of another one is its failure, too."""
    before: Call | None = None
    for call in reversed(calls[1:]):
        before = replace(call, before=before)
    return replace(calls[0], before=before)
