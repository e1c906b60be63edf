"""New weights for the engines, and the proof that they arrived."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.publish.base import (
    POLICY,
    PublishTurns,
    WeightReceivers,
    WeightSource,
    WeightTransport,
)
from rlhf_ray.publish.gate import Probe, check_fidelity, compare


class PublishedPolicy(WeightSource, Protocol):
    """A source of weights that can score the probe with them."""

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]: ...


class PublishedEngines(WeightReceivers, Protocol):
    """Engines that name the version of their weights and can score the probe."""

    def weight_version(self) -> list[Call]: ...
    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]: ...


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
    ) -> None:
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
        if is_first or version % self._settings.probe_every == 0:
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
        self._turns.begin_generating()
        scored = self._wait(self._receivers.score_sequences(sequences))
        versions = self._wait(self._receivers.weight_version())
        gaps = [compare(engine, learner) for engine in scored]
        check_fidelity(
            expected_version=version,
            versions=versions,
            gaps=gaps,
            tolerance=self._settings.probe_tolerance,
        )
        return {"publish/probe_gap_max": max(gaps)}

    def _wait(self, calls: Sequence[Call]) -> list[Any]:
        return self._waiter.results(calls, phase="publish", timeout_s=self._settings.timeout_s)
