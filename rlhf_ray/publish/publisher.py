"""New weights for the engines, bucket by bucket, and the proof that they arrived."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.publish.gate import Probe, check, compare
from rlhf_ray.publish.transfer import BucketReceivers, BucketSource, TransferSettings, transfer


class WeightSource(BucketSource, Protocol):
    """See `cluster.roles.learner.Learners`."""

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]: ...


class WeightReceivers(BucketReceivers, Protocol):
    """See `cluster.roles.generator.Generators`."""

    def finish_update(self, version: int) -> list[Call]: ...
    def weight_version(self) -> list[Call]: ...
    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishSettings:
    """See `config.run.PublishConfig`; the tolerance is a number here."""

    bucket_bytes: int
    probe_every: int
    probe_tolerance: float
    timeout_s: float


class Publisher:
    """Publishes the learner's weights to every engine and proves them with a fixed probe."""

    def __init__(
        self,
        *,
        source: WeightSource,
        receivers: WeightReceivers,
        watch: CallWaiter,
        probe: Probe,
        settings: PublishSettings,
    ) -> None:
        self._source = source
        self._receivers = receivers
        self._watch = watch
        self._probe = probe
        self._settings = settings
        self._transfer = TransferSettings(
            bucket_bytes=settings.bucket_bytes, phase="publish", timeout_s=settings.timeout_s
        )

    def publish(self, version: int) -> dict[str, float]:
        """Move the weights, then prove them where this version is due.

        Raises:
            FidelityError: an engine does not compute what the learner computes.
            RunFailed: a worker failed or was late.
        """
        transfer(self._source, self._receivers, self._watch, self._transfer)
        self._wait(self._receivers.finish_update(version))
        metrics = {"publish/version": float(version)}
        if version % self._settings.probe_every == 0:
            metrics |= self.prove(version)
        return metrics

    def prove(self, version: int) -> dict[str, float]:
        """The gate: every engine reports `version` and scores the probe as the learner does.

        Raises:
            FidelityError: an engine does not; says which one, and by how much.
        """
        sequences = list(self._probe.sequences)
        # One after the other: side by side on a machine whose cores they share, the threads of
        # each spin while those of the other compute, and both take twice as long.
        scored = self._wait(self._receivers.score_sequences(sequences))
        learner = self._wait(self._source.score_sequences(sequences))[0]
        versions = self._wait(self._receivers.weight_version())
        gaps = [compare(engine, learner) for engine in scored]
        check(
            expected_version=version,
            versions=versions,
            gaps=gaps,
            tolerance=self._settings.probe_tolerance,
        )
        return {"publish/probe_gap_max": max(gaps)}

    def _wait(self, calls: Sequence[Call]) -> list[Any]:
        return self._watch.results(calls, phase="publish", timeout_s=self._settings.timeout_s)
