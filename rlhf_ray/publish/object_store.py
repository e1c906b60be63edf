"""Weights through Ray's object store, bucket by bucket."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.publish.base import TransferSettings, WeightReceivers, WeightSource

# Name of this transport's receiver in vLLM; see `generation.weights.receiver`.
ENGINE_BACKEND = "object_store"


class ObjectStoreTransport:
    """Passes references to buckets from the source to the receivers.

    The source writes each bucket to the object store once; all receivers of a node read the same
    copy. The driver holds references only.
    """

    def send(
        self,
        source: WeightSource,
        receivers: WeightReceivers,
        waiter: CallWaiter,
        settings: TransferSettings,
    ) -> None:
        """See `WeightTransport.send`. At most two buckets exist at a time."""

        def wait(calls: Sequence[Call]) -> None:
            waiter.results(calls, phase=settings.phase, timeout_s=settings.timeout_s)

        wait(receivers.begin_update())
        stream, others = source.weight_buckets(settings.bucket_bytes)
        loading: list[Call] = []
        for bucket in waiter.stream(stream, phase=settings.phase, timeout_s=settings.timeout_s):
            # Wait for the bucket before this one only now: while the receivers load it, the
            # source packs the next.
            wait(loading)
            loading = receivers.load_bucket(bucket)
        # The source's other ranks only help to gather sharded weights: they are done when the
        # stream is, but a failure of theirs shows up here.
        wait([*loading, *others])
