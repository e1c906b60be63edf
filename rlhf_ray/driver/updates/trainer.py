"""The training of one batch: experience, then the update of learner and critic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.driver.roles import BuilderRole, CriticRole, LearnerRole
from rlhf_ray.driver.rollouts.batch import Batch
from rlhf_ray.driver.updates.texts import RankTexts, TextSource
from rlhf_ray.driver.updates.token_scores import BatchTokenScores
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


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateInputs:
    """All that the update of a step reads, so that it can be done again.

    Attributes:
        learner, critic: references to the shares of the experience.
        texts: of every share of the learner; None in a step that trains the critic alone.
    """

    step: int
    learner: tuple[Any, ...]
    critic: tuple[Any, ...]
    texts: Sequence[RankTexts] | None
    coefficients: Coefficients


def _note_nothing(inputs: UpdateInputs) -> None:
    del inputs


class Trainer:
    """One update per batch, of learner and critic at the same time.

    Args:
        texts: pretraining texts that the policy learns in addition to the batch.
        note: is given the inputs of every update that is done.
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
        note: Callable[[UpdateInputs], None] = _note_nothing,
    ) -> None:
        self._note = note
        # Of the last step that was begun: an update that is done again has the same texts.
        self._texts_of: tuple[int, Sequence[RankTexts] | None] = (-1, None)
        self._builder = builder
        self._learner = learner
        self._critic = critic
        self._texts = texts
        self._waiter = waiter
        self._settings = settings

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
        learner, critic = building.payload
        inputs = UpdateInputs(
            step=step,
            learner=learner,
            critic=critic,
            texts=self._texts_for(step),
            coefficients=coefficients,
        )
        # The experience goes from builder to ranks by reference. The updates are called before
        # it is built, so that each rank starts as soon as its own part is there.
        policy, values = self._begin(inputs)
        timeout_s = self._settings.build_timeout_s
        (metrics,) = self._waiter.results([building], phase="build", timeout_s=timeout_s)
        updated = self._finish([*policy, *values])
        self._note(inputs)
        # Every rank of a role reports the same numbers, so the first rank's are enough. Metrics
        # of the experience come last and win, because they cover the whole batch as it was before
        # the first optimiser step.
        policy_metrics = updated[0] if policy else {}
        value_metrics = updated[len(policy)] if values else {}
        return {**policy_metrics, **value_metrics, **metrics}

    def replay(self, inputs: UpdateInputs) -> None:
        """Do an update again, on ranks that are where they were before it.

        Raises:
            RunFailed: a worker failed or was late.
        """
        policy, values = self._begin(inputs)
        self._finish([*policy, *values])

    def _begin(self, inputs: UpdateInputs) -> tuple[list[Call], list[Call]]:
        policy: list[Call] = []
        if inputs.texts is not None:
            policy = self._learner.update(
                inputs.learner, texts=inputs.texts, coefficients=inputs.coefficients
            )
        return policy, self._critic.update(inputs.critic)

    def _finish(self, calls: Sequence[Call]) -> list[Any]:
        timeout_s = self._settings.update_timeout_s
        return self._waiter.results(calls, phase="update", timeout_s=timeout_s)

    def _texts_for(self, step: int) -> Sequence[RankTexts] | None:
        """The texts of a step, taken once; None if the policy is not trained in it."""
        if self._texts_of[0] != step:
            is_trained = step >= self._settings.critic_warmup_steps
            self._texts_of = (step, self._texts.next() if is_trained else None)
        return self._texts_of[1]
