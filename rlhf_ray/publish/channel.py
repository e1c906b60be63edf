"""The two ends of a channel: learner ranks that send buckets, engine workers that receive them.

Torch only: the learner needs no vLLM for it, the engine no DeepSpeed. `group.py` and
`shared_memory.py` are the kinds of channels.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed import Store, TCPStore

from rlhf_ray.publish.base import LOST
from rlhf_ray.publish.plan import PlannedBucket, WeightSpec, fill

# Host and port of a store, served by a sender.
StoreAddress = tuple[str, int]


class PeerLost(Exception):  # noqa: N818 - as its neighbours, it reads as a sentence
    """The other end has failed, ended, or was late."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{LOST}: {what}")
        self.what = what


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelSettings:
    """A channel, as every one of its ends must know it. Made of plain values, to cross processes.

    Attributes:
        kind: name of the transport in `transports.TRANSPORTS`.
        name: name of this channel, another one each time that it is opened.
        addresses: of the stores of all learner ranks, in the order of the ranks.
        workers: number of vLLM's worker processes, of each engine.
        first_worker: number of an engine's first worker among all; 0 for the learner.
        specs: all weights, in the order in which they are sent.
        bucket_bytes: see `plan.plan_buckets`.
        timeout_s: longest wait for the other end: to connect, and for each bucket.
    """

    kind: str
    name: str
    addresses: tuple[StoreAddress, ...]
    workers: tuple[int, ...]
    first_worker: int
    specs: tuple[WeightSpec, ...]
    bucket_bytes: int
    timeout_s: float

    @property
    def timeout(self) -> timedelta:
        return timedelta(seconds=self.timeout_s)


class SenderEnd(Protocol):
    """One learner rank's end. Buckets are sent in order; two are under way at a time."""

    def begin(self) -> None:
        """Begin a transfer."""
        ...

    def buffer(self, num_bytes: int) -> Tensor:
        """Memory [num_bytes] uint8 for the next bucket, as soon as there is some.

        Raises:
            PeerLost: no receiver has taken the bucket that used it before.
        """
        ...

    def post(self, flat: Tensor) -> None:
        """Send a filled buffer; returns before it has arrived."""
        ...

    def finish(self) -> None:
        """Wait until all workers have loaded all buckets; raises PeerLost."""
        ...

    def drop(self) -> str:
        """Leave at once after a failure, so that the receivers fail too and do not wait.

        Returns:
            names of the workers that do not even say that they have failed.
        """
        ...

    def close(self) -> None:
        """Free the memory, after the last `finish`."""
        ...


class ReceiverEnd(Protocol):
    """One engine worker's end. Buckets are taken in order."""

    def begin(self, plan: tuple[PlannedBucket, ...]) -> None:
        """Expect the buckets of a transfer."""
        ...

    def take(self, bucket: PlannedBucket) -> Tensor:
        """The next bucket [num_bytes] uint8, valid until the next `release`; raises PeerLost."""
        ...

    def release(self) -> None:
        """Give the memory of the bucket back: its weights have been loaded."""
        ...

    def finish(self) -> None:
        """Tell the learner that all buckets have been loaded; raises PeerLost."""
        ...

    def drop(self) -> None:
        """Leave at once after a failure."""
        ...

    def close(self) -> None:
        """Free the memory."""
        ...


class BufferPair:
    """Two buffers used in turn: one is under way while the other is filled or loaded.

    A bucket that is larger, because a single tensor is, gets memory for itself, which is given back
    after it: the pair stays at twice the size of an ordinary bucket.
    """

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._pair = [torch.empty(num_bytes, dtype=torch.uint8, device=device) for _ in range(2)]
        self._turn = 0

    def next(self, num_bytes: int) -> Tensor:
        """Memory [num_bytes] uint8; that of the call before the last, if it is large enough."""
        buffer = self._pair[self._turn]
        self._turn = 1 - self._turn
        if num_bytes > buffer.numel():
            return torch.empty(num_bytes, dtype=torch.uint8, device=buffer.device)
        return buffer[:num_bytes]


def buffer_bytes(plan: tuple[PlannedBucket, ...], bucket_bytes: int) -> int:
    """Size of a buffer that all buckets fit into, but those of a single larger tensor."""
    return min(bucket_bytes, max(bucket.num_bytes for bucket in plan))


def listen(host: str) -> socket.socket:
    """A socket for a sender's store, bound before its port is told to any receiver.

    It listens at the address of this node only: torch's store has no authentication.
    """
    family, *_, where = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind(where)
    listener.listen(1024)
    return listener


def serve_store(listener: socket.socket, host: str, timeout: timedelta) -> Store:
    """The sender's store; it owns the listener from here on."""
    port = listener.getsockname()[1]
    return TCPStore(
        host,
        port,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def reach_store(address: StoreAddress, timeout: timedelta) -> Store:
    """A receiver's connection to a sender's store.

    Raises:
        PeerLost: the sender does not answer in time.
    """
    host, port = address
    try:
        return TCPStore(host, port, is_master=False, timeout=timeout, wait_for_workers=False)
    except RuntimeError as error:
        raise PeerLost(f"no answer from {host}:{port}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """An error's text without torch's C++ stack and Gloo's advice."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line.partition(" This is typically caused by")[0]


def send_weights(
    named: Iterator[tuple[str, Tensor]], plan: tuple[PlannedBucket, ...], sender: SenderEnd
) -> str:
    """Send all weights; always run `named` to its end, for the other ranks gather with it.

    Returns:
        the failure of the transfer, or "" if all buckets have been taken. A failure is no
        exception: the failure of a receiver is the cause of it more often than not, and the driver
        compares them.
    """
    num_sent = 0
    sender.begin()
    try:
        for bucket in plan:
            flat = sender.buffer(bucket.num_bytes)
            fill(flat, bucket, named)
            sender.post(flat)
            num_sent += 1
        # The generator ends behind its last weight: there the ranks leave the last gather.
        drain(named)
        sender.finish()
    except PeerLost as error:
        # First of all, because the receivers are waiting and a gather may take long.
        silent = sender.drop()
        drain(named)
        where = f"after bucket {num_sent} of {len(plan)}"
        return f"no answer from {silent} {where}: {error.what}" if silent else f"{error} ({where})"
    except BaseException:
        sender.drop()
        drain(named)
        raise
    return ""


def drain(named: Iterator[tuple[str, Tensor]]) -> None:
    """Run an iterator to its end: every step may be a gather that other ranks wait in."""
    for _ in named:
        pass
