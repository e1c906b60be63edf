"""What is made of scored groups, as a Ray actor: experience, files, an evaluation's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.calls import Call
from rlhf_ray.cluster.roles.base import call_of
from rlhf_ray.cluster.runtime.process import ActorProcess
from rlhf_ray.cluster.runtime.supervisor import Member
from rlhf_ray.records import Coefficients, RolloutGroup


class BuilderActor(ActorProcess):
    """Turns scored groups into experience, measures them, and writes them down."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        from rlhf_ray.experience.builder import ExperienceBuilder

        self._worker = ExperienceBuilder(**settings)

    def start(self) -> None:
        """Nothing to do: the answer says that the process is there."""

    def build(
        self, step: int, coefficients: Coefficients, counts: dict[str, int], *parts: Any
    ) -> tuple[Any, ...]:
        """Metrics, then the experience of every learner rank, then of every critic rank.

        Args:
            counts: how many of `parts` are groups, and how many are per-token values by which
                role, in this order: groups, reference, values, old.
        """
        remaining = iter(parts)
        taken = {name: [next(remaining) for _ in range(n)] for name, n in counts.items()}
        batch = self._worker.build(step=step, coefficients=coefficients, **taken)
        return (batch.metrics, *batch.learner, *batch.critic)

    def write_rollouts(self, path: Path, *groups: RolloutGroup) -> None:
        self._worker.write_rollouts(path, groups)

    def measure(self, settings: Any, num_groups: int, *parts: Any) -> Sequence[Any]:
        """See `evaluation.answers.measure_answers`.

        Args:
            parts: so many groups, then what each rank of the reference computed for them.
        """
        from rlhf_ray.evaluation.answers import measure_answers

        reference = [values for rank in parts[num_groups:] for values in rank]
        return measure_answers(parts[:num_groups], reference, settings)

    def close(self) -> None:
        """Nothing to do."""


class BuilderGroup:
    """The one worker that turns groups into experience."""

    def __init__(self, member: Member, *, num_learners: int, num_critics: int) -> None:
        self._member = member
        self._num_learners = num_learners
        self._num_critics = num_critics

    def build(
        self,
        *,
        step: int,
        coefficients: Coefficients,
        groups: Sequence[Any],
        reference: Sequence[Any],
        values: Sequence[Any],
        old: Sequence[Any],
    ) -> Call:
        """Signal: metrics. Payload: `(learner, critic)`, a reference per rank of each."""
        counts = {
            "groups": len(groups),
            "reference": len(reference),
            "values": len(values),
            "old": len(old),
        }
        num_returns = 1 + self._num_learners + self._num_critics
        method = self._member.handle.build.options(num_returns=num_returns)
        refs = method.remote(step, coefficients, counts, *groups, *reference, *values, *old)
        metrics, *experiences = refs
        learner = tuple(experiences[: self._num_learners])
        critic = tuple(experiences[self._num_learners :])
        return Call(member=self._member.name, signal=metrics, payload=(learner, critic))

    def measure(self, groups: Sequence[Any], reference: Sequence[Any], settings: Any) -> Call:
        """Signal: what `evaluation.answers.measure_answers` makes of scored groups.

        Args:
            reference: payloads of `RankGroup.score` for the same groups; none without a reference.
        """
        method = self._member.handle.measure
        return call_of(self._member, method.remote(settings, len(groups), *groups, *reference))

    def write_rollouts(self, path: Path, groups: Sequence[Any]) -> Call:
        return call_of(self._member, self._member.handle.write_rollouts.remote(path, *groups))
