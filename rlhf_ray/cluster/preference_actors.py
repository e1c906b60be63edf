"""The ranks of preference training as Ray actors; see `actors`."""

from __future__ import annotations

from typing import Any

from rlhf_ray.cluster.roles.base import Fitted


class _Compared(Fitted):
    """What the policies that are compared with their start have in common."""

    def score_answers(self, samples: Any) -> list[float]:
        return self._worker.score_answers(samples)


class PreferenceLearner(_Compared):
    """One rank of a policy that learns from rankings."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        from rlhf_ray.training.roles.preference_trainer import PreferenceLearner as Worker

        self._worker = Worker(**settings)


class FeedbackLearner(_Compared):
    """One rank of a policy that learns from feedback."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        from rlhf_ray.training.feedback_learner import FeedbackLearner as Worker

        self._worker = Worker(**settings)
