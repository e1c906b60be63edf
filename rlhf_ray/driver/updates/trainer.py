"""From a scored batch to new weights: experience, then the update of learner and critic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.driver.rollouts.batch import Batch
from rlhf_ray.driver.updates.scorers import BatchScores
from rlhf_ray.driver.updates.texts import TextSource
from rlhf_ray.records import Coefficients


class ExperienceSource(Protocol):
    """See `cluster.roles.builder.Builders`."""

    def build(
        self,
        *,
        step: int,
        coefficients: Coefficients,
        groups: Sequence[Any],
        reference: Sequence[Any],
        values: Sequence[Any],
        old: Sequence[Any],
    ) -> Call: ...


class PolicyRole(Protocol):
    """See `cluster.roles.learner.Learners`."""

    def update(
        self, experiences: Sequence[Any], *, texts: Sequence[Any], coefficients: Coefficients
    ) -> list[Call]: ...


class ValueRole(Protocol):
    """See `cluster.roles.critic.Critics`."""

    def update(self, experiences: Sequence[Any]) -> list[Call]: ...


class NoCritic:
    """The algorithm has none."""

    def update(self, experiences: Sequence[Any]) -> list[Call]:
        del experiences
        return []


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerSettings:
    """Deadlines, and the steps at the start in which only the critic learns."""

    build_timeout_s: float
    update_timeout_s: float
    critic_warmup_steps: int


class Trainer:
    """One update per batch; learner and critic at the same time.

    Args:
        texts: what the policy learns beside the batch.
    """

    def __init__(
        self,
        *,
        builder: ExperienceSource,
        learner: PolicyRole,
        critic: ValueRole,
        texts: TextSource,
        watch: CallWaiter,
        settings: TrainerSettings,
    ) -> None:
        self._builder = builder
        self._learner = learner
        self._critic = critic
        self._texts = texts
        self._watch = watch
        self._settings = settings

    def update(
        self, batch: Batch, scores: BatchScores, *, step: int, coefficients: Coefficients
    ) -> dict[str, float]:
        """Train on a batch; metrics of the experience, the policy and the values.

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
        # The experience goes from builder to ranks by reference: nobody waits for it here.
        policy: list[Call] = []
        if step >= self._settings.critic_warmup_steps:
            policy = self._learner.update(
                learner_experience, texts=self._texts.next(), coefficients=coefficients
            )
        values = self._critic.update(critic_experience)
        timeout_s = self._settings.build_timeout_s
        (metrics,) = self._watch.results([building], phase="build", timeout_s=timeout_s)
        updated = self._watch.results(
            [*policy, *values], phase="update", timeout_s=self._settings.update_timeout_s
        )
        # Every rank of a role reports the same numbers: one of each is enough. Metrics of the
        # experience come last: they cover the whole batch before the first optimiser step.
        policy_metrics = updated[0] if policy else {}
        value_metrics = updated[len(policy)] if values else {}
        return {**policy_metrics, **value_metrics, **metrics}
