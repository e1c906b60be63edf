"""Channel `collective`: broadcasts in a process group of learner rank 0 and all engine workers.

The group is an object of this file. Torch's default groups, that of DeepSpeed in the learner and
that of vLLM in a worker, are not touched: nothing is registered globally, and ranks are those of
this group. Gloo on CPUs, NCCL on GPUs.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from typing import Any

import torch
from torch import Tensor
from torch.distributed import Store
from torch.distributed import distributed_c10d as c10d

from rlhf_ray.publish.channel import (
    BufferPair,
    ChannelSettings,
    PeerLost,
    buffer_bytes,
    first_line,
    reach_store,
    serve_store,
)
from rlhf_ray.publish.messages import LOOK_S, Messages
from rlhf_ray.publish.plan import PlannedBucket, plan_buckets

_POLL_S = 0.0005
# Torch's watchdog ends a process whose NCCL call is late; our deadline must come first.
_WATCHDOG_FACTOR = 4


class WeightGroup:
    """One process' membership; rank 0 sends.

    Args:
        rank: 0 for the learner, 1 + number of the worker for a worker.
    """

    def __init__(
        self, messages: Messages, rank: int, settings: ChannelSettings, device: torch.device
    ) -> None:
        self._settings, self._device = settings, device
        self.messages = messages
        prefix = messages.store
        world_size = 1 + sum(settings.workers)
        try:
            self._group: Any = (
                _nccl_group(prefix, rank, world_size, settings, device)
                if device.type == "cuda"
                # The group's own time limit is that of a bucket: a group with a broadcast under way
                # to a peer that hangs is freed only when that limit has passed.
                else c10d.ProcessGroupGloo(prefix, rank, world_size, settings.timeout)
            )
        except RuntimeError as error:
            raise PeerLost(
                f"the {world_size} members did not all connect within {settings.timeout_s:g} s: "
                f"{first_line(error)}"
            ) from error

    def broadcast(self, flat: Tensor) -> Any:
        """Begin to send `flat` [bytes] uint8, or to receive into it; `wait` for the result."""
        if self._group is None:
            raise PeerLost("this end has left the channel after a failure")
        options = c10d.BroadcastOptions()
        options.rootRank, options.rootTensor, options.asyncOp = 0, 0, True
        try:
            return self._group.broadcast([flat], options)
        except RuntimeError as error:
            raise PeerLost(first_line(error)) from error

    def failure_of(self, work: Any) -> str:
        """Wait for a broadcast within the deadline; the text of its failure, or "".

        No exception: its traceback would keep the broadcast, and with it the group, alive, and the
        other members would not notice that this one has left.
        """
        late = f"a bucket did not pass within {self._settings.timeout_s:g} s"
        try:
            if self._device.type == "cuda" and not self._is_done_in_time(work):
                return late
            work.wait(self._settings.timeout)
        except RuntimeError as error:
            return (
                f"a bucket did not pass (limit {self._settings.timeout_s:g} s): {first_line(error)}"
            )
        return ""

    def _is_done_in_time(self, work: Any) -> bool:
        """Wait without blocking in NCCL, where a broadcast with a dead peer never returns.

        Raises:
            PeerLost: another end has failed, which NCCL does not notice.
        """
        now = time.monotonic()
        look, deadline = now + LOOK_S, now + self._settings.timeout_s
        while not work.is_completed():
            now = time.monotonic()
            if now > deadline:
                return False
            if now > look:
                self.messages.check()
                look = now + LOOK_S
            time.sleep(_POLL_S)
        return True

    def leave(self) -> None:
        """Leave the group, which makes every other member's broadcast fail."""
        group, self._group = self._group, None
        if group is not None and self._device.type == "cuda":
            # NCCL's way to end a call that waits for a dead peer.
            group.abort()


def _nccl_group(
    prefix: Store, rank: int, world_size: int, settings: ChannelSettings, device: torch.device
) -> Any:
    options = c10d.ProcessGroupNCCL.Options()
    options._timeout = _WATCHDOG_FACTOR * settings.timeout
    # Calls return at once, so that `abort` can end a connection or a broadcast that hangs.
    options.config.blocking = 0
    group = c10d.ProcessGroupNCCL(prefix, rank, world_size, options)
    group.eager_connect_single_device(device)
    return group


class GroupSender:
    """The end of learner rank 0."""

    def __init__(self, group: WeightGroup, buffers: BufferPair, num_workers: int) -> None:
        self._group = group
        self._buffers = buffers
        self._num_workers = num_workers
        # Broadcasts under way, each with the memory that it reads.
        self._works: deque[tuple[Any, Tensor]] = deque()

    def begin(self) -> None:
        """See `SenderEnd.begin`."""
        self._group.messages.begin()

    def buffer(self, num_bytes: int) -> Tensor:
        """See `SenderEnd.buffer`."""
        self._wait_until(1)
        return self._buffers.next(num_bytes)

    def post(self, flat: Tensor) -> None:
        """See `SenderEnd.post`."""
        self._works.append((self._group.broadcast(flat), flat))

    def finish(self) -> None:
        """See `SenderEnd.finish`."""
        self._wait_until(0)
        # A broadcast is over when the bytes have left, not when they have been loaded.
        self._group.messages.wait_for_done(range(self._num_workers))

    def drop(self) -> str:
        """See `SenderEnd.drop`."""
        self._group.messages.fail()
        self.close()
        return self._group.messages.silent(range(self._num_workers))

    def close(self) -> None:
        """See `SenderEnd.close`."""
        # A broadcast keeps its group alive.
        self._works.clear()
        self._group.leave()

    def _wait_until(self, num_left: int) -> None:
        while len(self._works) > num_left:
            _raise_if(self._group.failure_of(self._works[0][0]))
            self._works.popleft()


class GroupReceiver:
    """The end of an engine worker, with its number among the workers of all engines."""

    def __init__(
        self, group: WeightGroup, buffers: BufferPair, worker: int, device: torch.device
    ) -> None:
        self._group = group
        self._device = device
        self._buffers = buffers
        self._worker = worker
        self._coming: deque[PlannedBucket] = deque()
        self._works: deque[tuple[Any, Tensor]] = deque()

    def begin(self, plan: tuple[PlannedBucket, ...]) -> None:
        """See `ReceiverEnd.begin`."""
        self._group.messages.begin()
        self._coming = deque(plan)
        self._post()

    def take(self, bucket: PlannedBucket) -> Tensor:
        """See `ReceiverEnd.take`."""
        _raise_if(self._group.failure_of(self._works[0][0]))
        flat = self._works.popleft()[1]
        assert flat.numel() == bucket.num_bytes
        # The other buffer, whose bucket has been loaded, fills while this one is loaded.
        self._post()
        return flat

    def release(self) -> None:
        """See `ReceiverEnd.release`."""

    def finish(self) -> None:
        """See `ReceiverEnd.finish`."""
        if self._device.type == "cuda":
            # The load of the last bucket has only been launched.
            torch.cuda.current_stream(self._device).synchronize()
        self._group.messages.done(self._worker)

    def drop(self) -> None:
        """See `ReceiverEnd.drop`."""
        self.close()
        self._group.messages.leave(self._worker)

    def close(self) -> None:
        """See `ReceiverEnd.close`."""
        self._works.clear()
        self._group.leave()

    def _post(self) -> None:
        if self._coming:
            flat = self._buffers.next(self._coming.popleft().num_bytes)
            self._works.append((self._group.broadcast(flat), flat))


def _raise_if(failure: str) -> None:
    if failure:
        raise PeerLost(failure)


def open_sender(
    settings: ChannelSettings, rank: int, listener: socket.socket, device: torch.device
) -> GroupSender | None:
    """The end of a learner rank; None for all but rank 0, which has all weights after a gather.

    Raises:
        PeerLost: not all workers came in time.
    """
    if rank > 0:
        listener.close()
        return None
    store = serve_store(listener, settings.addresses[0][0], settings.timeout)
    messages = Messages(store, settings)
    # Before the group is made: NCCL would wait half an hour for a member that is missing.
    messages.assemble(range(sum(settings.workers)))
    group = WeightGroup(messages, 0, settings, device)
    return GroupSender(group, _buffers(settings, device), sum(settings.workers))


def open_receiver(settings: ChannelSettings, worker: int, device: torch.device) -> GroupReceiver:
    """The end of an engine worker; `worker` is its number among those of all engines.

    Raises:
        PeerLost: the learner or another worker did not come in time.
    """
    store = reach_store(settings.addresses[0], settings.timeout)
    messages = Messages(store, settings)
    messages.join(worker)
    group = WeightGroup(messages, 1 + worker, settings, device)
    return GroupReceiver(group, _buffers(settings, device), worker, device)


def _buffers(settings: ChannelSettings, device: torch.device) -> BufferPair:
    plan = plan_buckets(settings.specs, settings.bucket_bytes)
    return BufferPair(buffer_bytes(plan, settings.bucket_bytes), device)
