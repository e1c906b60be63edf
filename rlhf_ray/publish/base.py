"""The interface of weight transports, which move weights from one role to another."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf_ray.calls import Call

# The weights that a learner can give away: its policy, the adapter that it trains, its EMA.
POLICY, ADAPTER, AVERAGE = "policy", "adapter", "average"
# Opens the failures of an end that lost the other one: the cause is likely the other end's.
LOST = "lost the other end of the channel"


class LearnerPart(enum.Enum):
    """A part of a trained role that leaves a shared device by itself."""

    STATES = "optimiser states, gradients, and weights in high precision"
    WEIGHTS = "the weights of forward passes"


class EnginePart(enum.Enum):
    """A part of an engine that comes back to a shared device by itself."""

    WEIGHTS = "weights"
    CACHE = "kv_cache"


class PublishTurns(Protocol):
    """The turns of learner and engines on shared devices; see `driver.updates.device_sharing`."""

    def begin_publishing(self) -> None: ...
    def begin_generating(self) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferSettings:
    """Size, deadline and phase of a transfer.

    Attributes:
        bucket_bytes: size of the largest bucket under way, unless a single tensor is larger.
        phase: name of the phase in failure messages.
        timeout_s: deadline of every single wait.
    """

    bucket_bytes: int
    phase: str
    timeout_s: float


class WeightSource(Protocol):
    """A role that gives weights away, such as `cluster.roles.learner.LearnerGroup`."""

    def weight_buckets(self, bucket_bytes: int, *, what: str = POLICY) -> tuple[Call, list[Call]]:
        """The stream of buckets from rank 0; the calls of the other ranks, which help to gather.

        Args:
            what: `POLICY`, `ADAPTER` or `AVERAGE`.
        """
        ...


class WeightReceivers(Protocol):
    """All workers of a role that takes weights: the engines, or the ranks of the reference."""

    def begin_update(self) -> list[Call]: ...
    def load_bucket(self, bucket: Any) -> list[Call]: ...
    def finish_update(self, version: int) -> list[Call]: ...


class WeightTransport(Protocol):
    """One way of moving weights. `publish.transport` chooses it, `transports.py` lists them."""

    def open(self, source: Any, receivers: Any) -> None:
        """Connect both ends, once before the first `send` and again when the receivers change.

        Args:
            source: a `WeightSource`; a transport may need more of it than that.
            receivers: `WeightReceivers`, likewise.

        Raises:
            RunFailed: a worker failed or was late.
        """
        ...

    def send(self, version: int, *, what: str = POLICY) -> None:
        """Give every weight to every receiver, which uses them as `version` when this returns.

        A transport keeps a bounded number of buckets, so that the memory it needs does not grow
        with the model.

        Raises:
            RunFailed: a worker failed or was late; the weights of the receivers are undefined.
        """
        ...

    def close(self) -> None:
        """Disconnect both ends and free their buffers."""
        ...
