"""Channel `ipc`: the learner writes buckets into memory that the engine's workers map.

No bucket is sent anywhere: for each of them the ends exchange two short messages, `ready` and
`loaded`, through the sender's store. On a CPU learner rank 0 shares anonymous files with all
workers of its machine. On GPUs every learner rank shares its GPU's memory with the one worker that
uses the same GPU (`device_memory.py`).
"""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rlhf_ray.publish.channel import (
    ChannelSettings,
    PeerLost,
    buffer_bytes,
    reach_store,
    serve_store,
)
from rlhf_ray.publish.device_memory import DeviceMemory, MappedDeviceMemory
from rlhf_ray.publish.messages import Messages
from rlhf_ray.publish.plan import PlannedBucket, plan_buckets
from rlhf_ray.publish.segments import SharedSegment, open_segment


class SharedMemory(Protocol):
    """Memory of a sender that its receivers can map."""

    def next(self, num_bytes: int) -> tuple[Tensor, str]:
        """Memory [num_bytes] uint8 in turn, and the text by which a receiver maps it."""
        ...

    def close(self) -> None: ...


class MappedMemory(Protocol):
    """A receiver's view of a sender's memory."""

    def map(self, text: str) -> Tensor:
        """The memory that a text of `SharedMemory.next` names; [bytes] uint8."""
        ...

    def close(self) -> None: ...


class HostMemory:
    """Two segments in turn, and one for itself for a bucket that is larger than they are."""

    def __init__(self, num_bytes: int) -> None:
        self._pair = [SharedSegment(num_bytes) for _ in range(2)]
        self._large: deque[SharedSegment] = deque()
        self._turn = 0

    def next(self, num_bytes: int) -> tuple[Tensor, str]:
        """See `SharedMemory.next`."""
        segment, is_kept = self._pair[self._turn], True
        self._turn = 1 - self._turn
        if num_bytes > segment.num_bytes:
            # At most two buckets are under way: an older one has been loaded.
            if len(self._large) == 2:
                self._large.popleft().close()
            segment, is_kept = SharedSegment(num_bytes), False
            self._large.append(segment)
        place = {"path": segment.path, "bytes": segment.num_bytes, "kept": is_kept}
        return torch.from_numpy(segment.array[:num_bytes]), json.dumps(place)

    def close(self) -> None:
        """See `SharedMemory.close`."""
        for segment in (*self._pair, *self._large):
            segment.close()
        self._pair, self._large = [], deque()


class MappedHostMemory:
    """Segments of the learner's process, mapped once where they are kept."""

    def __init__(self) -> None:
        self._kept: dict[str, np.ndarray] = {}

    def map(self, text: str) -> Tensor:
        """See `MappedMemory.map`."""
        place = json.loads(text)
        path = place["path"]
        array = self._kept.get(path) if place["kept"] else None
        if array is None:
            try:
                array = open_segment(path, place["bytes"])
            except OSError as error:
                raise PeerLost(
                    f"{path} cannot be mapped ({error}): publish.transport=ipc needs learner and "
                    f"engines on one machine, in one container, as one user; otherwise set "
                    f"publish.transport=collective"
                ) from error
            if place["kept"]:
                self._kept[path] = array
        return torch.from_numpy(array)

    def close(self) -> None:
        """See `MappedMemory.close`."""
        self._kept.clear()


class SharedSender:
    """The end of a learner rank.

    Args:
        workers: numbers of the workers that map this rank's memory.
    """

    def __init__(self, messages: Messages, workers: Sequence[int], memory: SharedMemory) -> None:
        self._messages = messages
        self._workers = tuple(workers)
        self._memory = memory
        self._number = 0
        self._text = ""
        self._posted: deque[int] = deque()

    def begin(self) -> None:
        """See `SenderEnd.begin`."""
        self._messages.begin()

    def buffer(self, num_bytes: int) -> Tensor:
        """See `SenderEnd.buffer`."""
        self._wait_until(1)
        flat, self._text = self._memory.next(num_bytes)
        return flat

    def post(self, flat: Tensor) -> None:
        """See `SenderEnd.post`."""
        if flat.is_cuda:
            torch.cuda.current_stream(flat.device).synchronize()
        self._number += 1
        self._messages.put(_ready(self._number), self._text)
        self._posted.append(self._number)

    def finish(self) -> None:
        """See `SenderEnd.finish`."""
        self._wait_until(0)
        self._messages.wait_for_done(self._workers)

    def drop(self) -> str:
        """See `SenderEnd.drop`."""
        self._messages.fail()
        return self._messages.silent(self._workers)

    def close(self) -> None:
        """See `SenderEnd.close`."""
        self._memory.close()

    def _wait_until(self, num_left: int) -> None:
        while len(self._posted) > num_left:
            number = self._posted[0]
            loaded = [_loaded(number, worker) for worker in self._workers]
            self._messages.wait(loaded, "a bucket was not loaded")
            # A run has millions of buckets: their messages go when all have read them.
            for key in (_ready(number), *loaded):
                self._messages.delete(key)
            self._posted.popleft()


class SharedReceiver:
    """The end of an engine worker, with its number among the workers of all engines."""

    def __init__(self, messages: Messages, worker: int, memory: MappedMemory) -> None:
        self._messages = messages
        self._worker = worker
        self._memory = memory
        self._number = 0

    def begin(self, plan: tuple[PlannedBucket, ...]) -> None:
        """See `ReceiverEnd.begin`."""
        del plan
        self._messages.begin()

    def take(self, bucket: PlannedBucket) -> Tensor:
        """See `ReceiverEnd.take`."""
        self._number += 1
        key = _ready(self._number)
        self._messages.wait([key], "the learner sent no bucket")
        return self._memory.map(self._messages.read(key))[: bucket.num_bytes]

    def release(self) -> None:
        """See `ReceiverEnd.release`."""
        if torch.cuda.is_available():
            # The load has only been launched: the learner must not overwrite what it still reads.
            torch.cuda.current_stream().synchronize()
        self._messages.put(_loaded(self._number, self._worker))

    def finish(self) -> None:
        """See `ReceiverEnd.finish`."""
        self._messages.done(self._worker)

    def drop(self) -> None:
        """See `ReceiverEnd.drop`."""
        self._messages.leave(self._worker)

    def close(self) -> None:
        """See `ReceiverEnd.close`."""
        self._memory.close()


def open_sender(
    settings: ChannelSettings, rank: int, listener: socket.socket, device: torch.device
) -> SharedSender | None:
    """The end of a learner rank; None for a rank whose memory no worker maps.

    Raises:
        PeerLost: not all workers came in time.
    """
    on_gpu = device.type == "cuda"
    if rank > 0 and not on_gpu:
        listener.close()
        return None
    plan = plan_buckets(settings.specs, settings.bucket_bytes)
    num_bytes = buffer_bytes(plan, settings.bucket_bytes)
    store = serve_store(listener, settings.addresses[rank][0], settings.timeout)
    memory = DeviceMemory(num_bytes, device) if on_gpu else HostMemory(num_bytes)
    workers = [rank] if on_gpu else range(sum(settings.workers))
    messages = Messages(store, settings)
    messages.assemble(workers)
    # Nothing but the process itself tells that a worker that maps memory was killed.
    messages.watch(workers)
    return SharedSender(messages, workers, memory)


def open_receiver(settings: ChannelSettings, worker: int, device: torch.device) -> SharedReceiver:
    """The end of an engine worker; `worker` is its number among those of all engines.

    Raises:
        PeerLost: the learner did not come in time.
    """
    on_gpu = device.type == "cuda"
    # Colocated engines and ranks are placed in the same order, a rank on the GPU of each worker.
    store = reach_store(settings.addresses[worker if on_gpu else 0], settings.timeout)
    memory = MappedDeviceMemory(device) if on_gpu else MappedHostMemory()
    messages = Messages(store, settings)
    messages.join(worker)
    return SharedReceiver(messages, worker, memory)


def _ready(number: int) -> str:
    return f"ready {number}"


def _loaded(number: int, worker: int) -> str:
    return f"loaded {number} by worker {worker}"
