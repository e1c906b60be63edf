"""Weights through Ray's object store, bucket by bucket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.losses import MemberLost, answers_of_rest
from rlhf_ray.publish.base import POLICY, TransferSettings, WeightReceivers, WeightSource


class ObjectStoreTransport:
    """Passes references to buckets from the source to the receivers.

    The source writes each bucket to the object store once; all receivers of a node read the same
    copy. The driver holds references only.
    """

    def __init__(self, waiter: CallWaiter, settings: TransferSettings) -> None:
        self._waiter = waiter
        self._settings = settings

    def open(self, source: WeightSource, receivers: WeightReceivers) -> None:
        """See `WeightTransport.open`. There is nothing to connect."""
        self._source, self._receivers = source, receivers

    def send(self, version: int, *, what: str = POLICY) -> None:
        """See `WeightTransport.send`. At most two buckets exist at a time."""
        settings = self._settings
        self._wait(self._receivers.begin_update())
        stream, others = self._source.weight_buckets(settings.bucket_bytes, what=what)
        loading: list[Call] = []
        buckets = self._waiter.stream(
            stream, phase=settings.phase, timeout_s=settings.timeout_s, others=others
        )
        try:
            for bucket in buckets:
                # Wait for the bucket before this one only now: while the receivers load it, the
                # source packs the next.
                self._wait(loading)
                # A source that dies leaves a bucket that cannot be read: the failure is its own.
                # No work of its own: a time of its end would take it to the driver.
                given = Call(member=stream.member, signal=bucket, payload=None, work=None)
                loads = self._receivers.load_bucket(bucket)
                loading = [replace(call, before=given) for call in loads]
        except MemberLost:
            # Another publish may follow: no bucket of this one may come into it.
            self._wait(loading)
            raise
        # The source's other ranks only help to gather sharded weights: they are done when the
        # stream is, but a failure of theirs shows up here.
        self._wait([*loading, *others])
        self._wait(self._receivers.finish_update(version))

    def close(self) -> None:
        """See `WeightTransport.close`. There is nothing to disconnect."""

    def _wait(self, calls: Sequence[Call]) -> None:
        """Wait for all. The stream goes on without a receiver that is lost and replaced."""
        settings = self._settings
        answers_of_rest(self._waiter, calls, phase=settings.phase, timeout_s=settings.timeout_s)
