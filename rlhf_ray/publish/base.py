"""The interface of weight transports, which move weights from one role to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from rlhf_ray.calls import Call, CallWaiter


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferSettings:
    """Size, deadline and phase of a transfer.

    Attributes:
        bucket_bytes: size of the largest bucket under way.
        phase: name of the phase in failure messages.
        timeout_s: deadline of every single wait.
    """

    bucket_bytes: int
    phase: str
    timeout_s: float


class WeightSource(Protocol):
    """A role that gives weights away, such as `cluster.roles.learner.LearnerGroup`."""

    def weight_buckets(self, bucket_bytes: int) -> tuple[Call, list[Call]]:
        """The stream of buckets from rank 0; the calls of the other ranks, which help to gather."""
        ...


class WeightReceivers(Protocol):
    """All workers of a role that takes weights: the engines, or the ranks of the reference."""

    def begin_update(self) -> list[Call]: ...
    def load_bucket(self, bucket: Any) -> list[Call]: ...


class WeightTransport(Protocol):
    """One way of moving weights. `publish.transport` chooses it, `transports.py` lists them."""

    def send(
        self,
        source: WeightSource,
        receivers: WeightReceivers,
        waiter: CallWaiter,
        settings: TransferSettings,
    ) -> None:
        """Give every weight of the source to every receiver, and wait until all have arrived.

        A transport begins the receivers' update and leaves ending it to the caller, because
        receivers differ in how they end one. It keeps at most a bounded number of buckets, so
        that the memory it needs does not grow with the model. It keeps no state between sends.

        Raises:
            RunFailed: a worker failed or was late.
        """
        ...
