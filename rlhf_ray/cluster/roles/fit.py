"""The roles that learn from examples: actors and facade."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.calls import Call
from rlhf_ray.cluster.roles.base import TrainedActor, TrainedGroup, call_of


class OfflineActor(TrainedActor):
    """What the roles that learn from examples have in common."""

    def update(self, steps: Sequence[Any]) -> dict[str, float]:
        return self._worker.update(steps)

    def evaluate(self, samples: Any) -> dict[str, float]:
        return self._worker.evaluate(samples)

    def save_model(self, folder: Path) -> None:
        self._worker.save_model(folder)


class OfflineGroup(TrainedGroup):
    """All ranks of a model that learns from examples."""

    def score_answers(self, samples: Sequence[Any]) -> list[Call]:
        """`samples`: those of each rank. Signal: a number for each of them."""
        return [
            call_of(member, member.handle.score_answers.remote(own))
            for member, own in zip(self._members, samples, strict=True)
        ]

    def update(self, samples: Sequence[Any]) -> list[Call]:
        """One optimiser step; `samples`: those of each rank. Signal: metrics, the same on all."""
        return [
            call_of(member, member.handle.update.remote([own]))
            for member, own in zip(self._members, samples, strict=True)
        ]

    def evaluate(self, samples: Sequence[Any]) -> list[Call]:
        """`samples`: those of each rank. Signal: metrics, the same on all of them."""
        return [
            call_of(member, member.handle.evaluate.remote(own))
            for member, own in zip(self._members, samples, strict=True)
        ]

    def save_model(self, folder: Path) -> list[Call]:
        return [call_of(m, m.handle.save_model.remote(folder)) for m in self._members]


class ComparedActor(OfflineActor):
    """What the policies that are compared with their start have in common."""

    def score_answers(self, samples: Any) -> list[float]:
        return self._worker.score_answers(samples)


class PreferenceTrainerActor(ComparedActor):
    """One rank of a policy that learns from rankings."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        from rlhf_ray.training.roles.preference_trainer import PreferenceTrainer as Worker

        self._worker = Worker(**settings)


class FeedbackTrainerActor(ComparedActor):
    """One rank of a policy that learns from feedback."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        from rlhf_ray.training.roles.preference_trainer import FeedbackTrainer as Worker

        self._worker = Worker(**settings)


class SftActor(OfflineActor):
    """One rank of a language model that learns from texts or demonstrations."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        from rlhf_ray.training.roles.sft_trainer import SftTrainer as Worker

        self._worker = Worker(**settings)


class RewardModelTrainerActor(OfflineActor):
    """One rank of a reward model that learns from rankings."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        from rlhf_ray.training.roles.reward_model_trainer import RewardModelTrainer as Worker

        self._worker = Worker(**settings)
