"""Weights from one role to another, bucket by bucket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf_ray.calls import Call, CallWaiter


class BucketSource(Protocol):
    """See `cluster.roles.learner.Learners`."""

    def weight_buckets(self, bucket_bytes: int) -> tuple[Call, list[Call]]: ...


class BucketReceivers(Protocol):
    """See `cluster.roles.generator.Generators` and `cluster.roles.reference.References`."""

    def begin_update(self) -> list[Call]: ...
    def load_bucket(self, bucket: Any) -> list[Call]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferSettings:
    """How weights travel.

    Attributes:
        bucket_bytes: of the largest bucket under way.
        phase: what a failure is reported under.
        timeout_s: of every single wait.
    """

    bucket_bytes: int
    phase: str
    timeout_s: float


def transfer(
    source: BucketSource, receivers: BucketReceivers, watch: CallWaiter, settings: TransferSettings
) -> None:
    """Give all weights of the source to every receiver; both ends have them all afterwards.

    A bucket is asked for when the one before the last is loaded, so that two of them exist at a
    time, whatever the size of the model. Ending the update is left to the caller: receivers
    differ in what it takes.

    Raises:
        RunFailed: a worker failed or was late.
    """

    def wait(calls: Sequence[Call]) -> None:
        watch.results(calls, phase=settings.phase, timeout_s=settings.timeout_s)

    wait(receivers.begin_update())
    stream, others = source.weight_buckets(settings.bucket_bytes)
    loading: list[Call] = []
    for bucket in watch.stream(stream, phase=settings.phase, timeout_s=settings.timeout_s):
        # One bucket loads while the source packs the next.
        wait(loading)
        loading = receivers.load_bucket(bucket)
    wait([*loading, *others])
