"""The training of one batch: experience, then the update of learner and critic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.driver.roles import BuilderRole, CriticRole, LearnerRole
from rlhf_ray.driver.rollouts.batch import Batch
from rlhf_ray.driver.updates.texts import TextSource
from rlhf_ray.driver.updates.token_scores import BatchTokenScores
from rlhf_ray.driver.updates.updated_scores import NoUpdatedScores, UpdatedScores
from rlhf_ray.records import Coefficients


class NoCritic:
    """Null object of an algorithm without a critic."""

    def update(self, experiences: Sequence[Any]) -> list[Call]:
        del experiences
        return []


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerSettings:
    """Deadlines, and the number of steps at the start that only train the critic."""

    build_timeout_s: float
    update_timeout_s: float
    critic_warmup_steps: int


class Trainer:
    """One update per batch, of learner and critic at the same time.

    Args:
        texts: pretraining texts that the policy learns in addition to the batch.
        updated_scores: looks at the batch again after the update; None does not.
    """

    def __init__(
        self,
        *,
        builder: BuilderRole,
        learner: LearnerRole,
        critic: CriticRole | NoCritic,
        texts: TextSource,
        waiter: CallWaiter,
        settings: TrainerSettings,
        updated_scores: UpdatedScores | NoUpdatedScores | None = None,
    ) -> None:
        self._builder = builder
        self._learner = learner
        self._critic = critic
        self._texts = texts
        self._waiter = waiter
        self._settings = settings
        self._updated_scores = updated_scores or NoUpdatedScores()

    def update(
        self, batch: Batch, scores: BatchTokenScores, *, step: int, coefficients: Coefficients
    ) -> dict[str, float]:
        """Train on a batch; return metrics of the experience, the policy and the values.

        Raises:
            RunFailed: a worker failed or was late.
        """
        building = self._builder.build(
            step=step,
            coefficients=coefficients,
            groups=batch.groups,
            reference=scores.reference,
            values=scores.values,
            old=scores.old,
        )
        learner_experience, critic_experience = building.payload
        # The experience goes from builder to ranks by reference. The updates are called before
        # it is built, so that each rank starts as soon as its own part is there.
        policy: list[Call] = []
        if step >= self._settings.critic_warmup_steps:
            policy = self._learner.update(
                learner_experience, texts=self._texts.next(), coefficients=coefficients
            )
        values = self._critic.update(critic_experience)
        timeout_s = self._settings.build_timeout_s
        (metrics,) = self._waiter.results([building], phase="build", timeout_s=timeout_s)
        updated = self._waiter.results(
            [*policy, *values], phase="update", timeout_s=self._settings.update_timeout_s
        )
        self._updated_scores.measure(batch, step)
        # Every rank of a role reports the same numbers, so the first rank's are enough. Metrics
        # of the experience come last and win, because they cover the whole batch as it was before
        # the first optimiser step.
        policy_metrics = updated[0] if policy else {}
        value_metrics = updated[len(policy)] if values else {}
        return {**policy_metrics, **value_metrics, **metrics}
