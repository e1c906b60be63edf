"""New weights for the engines, and the proof that they arrived."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf_ray.calls import Call, CallWaiter, MemberName
from rlhf_ray.losses import answers_of_rest
from rlhf_ray.publish.base import POLICY, PublishTurns, WeightSource, WeightTransport
from rlhf_ray.publish.gate import Probe, check_fidelity, check_learner, compare, problems_of


class PublishedPolicy(WeightSource, Protocol):
    """A source of weights that can score the probe with them."""

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]: ...


class PublishedEngines(Protocol):
    """Engines that name the version of their weights and can score the probe."""

    def weight_version(self) -> list[Call]: ...
    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]: ...


class Trials(Protocol):
    """Engines that the gate decides about: one that it refuses is replaced, and ends no run."""

    @property
    def on_trial(self) -> Collection[MemberName]: ...
    def passed(self, names: Collection[MemberName]) -> None:
        """These engines, on trial or not, hold the published weights."""
        ...

    def refuse(self, name: MemberName, reason: str) -> None:
        """This engine is on trial and does not. Raises RunFailed if that ends the run."""
        ...


class NoTrials:
    """Null object of a run without recovery: every refusal ends it."""

    on_trial: tuple[MemberName, ...] = ()

    def passed(self, names: Collection[MemberName]) -> None: ...

    def refuse(self, name: MemberName, reason: str) -> None:
        raise AssertionError(f"{name} is not on trial: {reason}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Probed:
    """The answers of one engine to a probe."""

    member: MemberName
    version: int
    gap: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishSettings:
    """See `config.groups.runtime.PublishConfig`; the tolerance is a number here.

    Attributes:
        what: weights to publish, `POLICY` or `ADAPTER`.
        timeout_s: deadline of the probe.
    """

    what: str = POLICY
    probe_every: int
    probe_tolerance: float
    timeout_s: float


class Publisher:
    """Publishes the learner's weights to every engine and checks them with a fixed probe.

    Args:
        transport: opened from the source to the receivers.
        turns: makes room on shared devices. A publish begins when the source is on them, and ends
            when the receivers are.
        trials: engines in the place of lost ones; None without recovery.
    """

    def __init__(
        self,
        *,
        source: PublishedPolicy,
        receivers: PublishedEngines,
        transport: WeightTransport,
        turns: PublishTurns,
        waiter: CallWaiter,
        probe: Probe,
        settings: PublishSettings,
        trials: Trials | NoTrials | None = None,
    ) -> None:
        self._trials = trials or NoTrials()
        self._source = source
        self._receivers = receivers
        self._transport = transport
        self._turns = turns
        self._waiter = waiter
        self._probe = probe
        self._settings = settings
        self._version = 0

    def publish(self, version: int, *, is_first: bool = False) -> dict[str, float]:
        """Move the weights; check them if a probe of this version is due.

        Args:
            is_first: of this process; it is always checked.

        Raises:
            FidelityError: an engine does not compute what the learner computes.
            RunFailed: a worker failed or was late.
        """
        self._version = version
        self._turns.begin_publishing()
        self._transport.send(version, what=self._settings.what)
        metrics = {"publish/version": float(version)}
        is_due = version % self._settings.probe_every == 0
        if is_first or is_due or self._trials.on_trial:
            return metrics | self._check(version)
        self._turns.begin_generating()
        return metrics

    def publish_again(self) -> None:
        """Move the weights of the last version once more, to engines that forgot them."""
        self.publish(self._version)

    def check_loaded(self, version: int) -> dict[str, float]:
        """Check weights that the engines loaded from files, as a publish is checked."""
        self._version = version
        self._turns.begin_publishing()
        return self._check(version)

    def _check(self, version: int) -> dict[str, float]:
        """Check that every engine reports `version` and scores the probe as the learner does.

        The learner scores first: where devices are shared, engines have their key-value cache only
        when the learner has left.
        """
        sequences = list(self._probe.sequences)
        # One role after the other: on shared cores, the threads of one role spin while those of
        # the other compute, and scoring both at once takes twice as long.
        learner = self._wait(self._source.score_sequences(sequences))[0]
        check_learner(learner, version=version)
        self._turns.begin_generating()
        scored = self._answers(self._receivers.score_sequences(sequences))
        versions = dict(self._answers(self._receivers.weight_version()))
        # An engine that was lost meanwhile has given one answer or none.
        probed = [
            _Probed(member=member, version=versions[member], gap=compare(scores, learner))
            for member, scores in scored
            if member in versions
        ]
        return self._judged(probed, version, lowest=min(min(row) for row in learner))

    def _judged(
        self, probed: Sequence[_Probed], version: int, *, lowest: float
    ) -> dict[str, float]:
        on_trial, limit = self._trials.on_trial, self._settings.probe_tolerance
        kept: list[_Probed] = []
        for one in probed:
            problems = problems_of(one.version, one.gap, expected_version=version, limit=limit)
            if problems and one.member in on_trial:
                self._trials.refuse(one.member, f"it {' and '.join(problems)}")
            else:
                kept.append(one)
        check_fidelity(
            expected_version=version,
            versions=[one.version for one in kept],
            gaps=[one.gap for one in kept],
            tolerance=limit,
            engines=[one.member.rank for one in kept],
            lowest=lowest,
        )
        self._trials.passed({one.member for one in kept})
        return {"publish/probe_gap_max": max(one.gap for one in kept)} if kept else {}

    def _answers(self, calls: Sequence[Call]) -> list[tuple[MemberName, Any]]:
        """Answers of the engines that are not lost meanwhile."""
        answers = answers_of_rest(
            self._waiter, calls, phase="publish", timeout_s=self._settings.timeout_s
        )
        return [(call.member, value) for call, value in answers]

    def _wait(self, calls: Sequence[Call]) -> list[Any]:
        return self._waiter.results(calls, phase="publish", timeout_s=self._settings.timeout_s)
