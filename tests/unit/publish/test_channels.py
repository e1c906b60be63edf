"""Both kinds of channels between threads: one sender, two receivers, and what failures do.

A receiver that hangs is a thread that takes no bucket. Processes that are killed or stopped are
those of `tests/ray/test_transports.py`.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import HashStore

from rlhf_ray.publish import messages
from rlhf_ray.publish.channel import ChannelSettings, PeerLost, ReceiverEnd
from rlhf_ray.publish.plan import WeightSpec, plan_buckets
from rlhf_ray.publish.segments import SharedSegment
from rlhf_ray.publish.sending import SendingEnd
from rlhf_ray.publish.shared_memory import MappedHostMemory
from rlhf_ray.publish.transports import COLLECTIVE, IPC, channel_ends

# They wait for receivers that hang.
pytestmark = pytest.mark.unit_slow

CPU = torch.device("cpu")
WORKERS = (1, 1)
# Larger than a bucket, in the middle and at the end.
SIZES = [5, 900, 17, 3000, 600, 1, 800, 20, 2500]
SPECS: tuple[WeightSpec, ...] = tuple(
    (f"w{i}", "bfloat16" if i % 3 == 0 else "float32", (size, 2)) for i, size in enumerate(SIZES)
)
BUCKET_BYTES = 8192
PLAN = plan_buckets(SPECS, BUCKET_BYTES)
KINDS = pytest.mark.parametrize("kind", [COLLECTIVE, IPC])
_NUMBERS = itertools.count()

# What a receiver does with the bucket of a number, counted over all publishes.
Behaviour = Callable[[int], None]


def weights(seed: int) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for name, dtype, shape in SPECS:
        yield name, torch.randn(shape, generator=generator).to(getattr(torch, dtype))


class Channel:
    """An open channel; `publish` runs all ends."""

    def __init__(self, kind: str, timeout_s: float, *behaviours: Behaviour) -> None:
        self.end = SendingEnd()
        self._behaviours = behaviours
        self._pool = ThreadPoolExecutor(len(WORKERS))
        settings = ChannelSettings(
            kind=kind,
            name=f"test-{next(_NUMBERS)}",
            addresses=(self.end.listen("127.0.0.1"),),
            workers=WORKERS,
            first_worker=0,
            specs=SPECS,
            bucket_bytes=BUCKET_BYTES,
            timeout_s=timeout_s,
        )
        ends = channel_ends(kind)
        joining = [
            self._pool.submit(ends.open_receiver, settings, worker, CPU)
            for worker in range(len(WORKERS))
        ]
        assert self.end.open(settings, 0, CPU) == ""
        self.receivers: list[ReceiverEnd] = [future.result() for future in joining]
        self._taken = [0] * len(WORKERS)

    def publish(self, seed: int) -> tuple[str, list[Any]]:
        """The sender's failure, and of each receiver its weights or its error."""
        receiving = [self._pool.submit(self._receive, worker) for worker in range(len(WORKERS))]
        sent = self.end.send(weights(seed))
        return sent, [_outcome(future) for future in receiving]

    def _receive(self, worker: int) -> dict[str, Tensor]:
        receiver, got = self.receivers[worker], {}
        try:
            receiver.begin(PLAN)
            for bucket in PLAN:
                self._behaviours[worker](self._taken[worker])
                flat = receiver.take(bucket)
                got |= {name: tensor.clone() for name, tensor in bucket.views(flat)}
                receiver.release()
                self._taken[worker] += 1
            receiver.finish()
        except BaseException:
            receiver.drop()
            raise
        return got

    def close(self) -> None:
        self.end.close()
        for receiver in self.receivers:
            receiver.close()
        self._pool.shutdown()


def _outcome(future: Future[dict[str, Tensor]]) -> Any:
    error = future.exception()
    return future.result() if error is None else error


def well(number: int) -> None:
    del number


@pytest.fixture
def channel() -> Iterator[Callable[..., Channel]]:
    opened: list[Channel] = []

    def make(*arguments: Any) -> Channel:
        opened.append(Channel(*arguments))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@KINDS
def test_every_weight_arrives_bit_for_bit_each_time(kind, channel):
    assert len(PLAN) > 4
    assert max(bucket.num_bytes for bucket in PLAN) > 2 * BUCKET_BYTES
    opened = channel(kind, 30.0, well, lambda number: time.sleep(0.01))
    for seed in range(3):
        sent, received = opened.publish(seed)
        assert sent == ""
        for got in received:
            assert list(got) == [name for name, _, _ in SPECS]
            for name, tensor in weights(seed):
                assert torch.equal(got[name], tensor), name


@KINDS
def test_a_receiver_that_fails_ends_the_publish_for_all_at_once(kind, channel):
    def fails(number: int) -> None:
        if number == len(PLAN) + 2:
            raise ValueError("not this one")

    opened = channel(kind, 30.0, well, fails)
    assert opened.publish(0)[0] == ""
    started = time.monotonic()
    sent, (other, own) = opened.publish(1)
    assert time.monotonic() - started < 15
    assert isinstance(own, ValueError)
    # It may have all buckets already: the small ones are sent ahead.
    assert isinstance(other, (PeerLost, dict))
    # Both receivers have said that they live, or are done: neither is blamed for silence.
    assert sent.startswith("lost the other end of the channel")


@KINDS
def test_a_receiver_that_hangs_is_named_after_the_deadline(kind, channel, monkeypatch):
    monkeypatch.setattr(messages, "_SILENCE_S", 0.5)
    woken = threading.Event()

    def hangs(number: int) -> None:
        if number == 2:
            woken.wait(60)

    opened = channel(kind, 1.0, well, hangs)
    try:
        started = time.monotonic()
        receiving = [opened._pool.submit(opened._receive, worker) for worker in (0, 1)]
        sent = opened.end.send(weights(0))
        assert 1 <= time.monotonic() - started < 20
        assert sent.startswith("no answer from generator_1 (worker 0 of 1) after bucket ")
        assert isinstance(_outcome(receiving[0]), (PeerLost, dict))
    finally:
        woken.set()


@KINDS
def test_the_source_is_run_to_its_end_after_a_failure(kind, channel, monkeypatch):
    """Other ranks gather with this one: they would wait for it in the next gather."""
    monkeypatch.setattr(messages, "_SILENCE_S", 0.1)

    def fails(number: int) -> None:
        raise ValueError("none at all")

    opened = channel(kind, 5.0, fails, fails)
    asked = []

    def noted() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights(0):
            asked.append(name)
            yield name, tensor

    receiving = [opened._pool.submit(opened._receive, worker) for worker in (0, 1)]
    assert opened.end.send(noted()) != ""
    assert asked == [name for name, _, _ in SPECS]
    assert [type(_outcome(future)) for future in receiving] == [ValueError, ValueError]


def test_a_rank_without_receivers_helps_to_gather():
    end, asked = SendingEnd(), []

    def noted() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights(0):
            asked.append(name)
            yield name, tensor

    settings = ChannelSettings(
        kind=COLLECTIVE,
        name="alone",
        addresses=(("127.0.0.1", 1), end.listen("127.0.0.1")),
        workers=WORKERS,
        first_worker=0,
        specs=SPECS,
        bucket_bytes=BUCKET_BYTES,
        timeout_s=1.0,
    )
    assert end.open(settings, 1, CPU) == ""
    assert end.send(noted()) == ""
    assert len(asked) == len(SPECS)


@KINDS
def test_receivers_that_do_not_come_fail_the_opening_in_time(kind):
    end = SendingEnd()
    settings = ChannelSettings(
        kind=kind,
        name=f"test-{next(_NUMBERS)}",
        addresses=(end.listen("127.0.0.1"),),
        workers=WORKERS,
        first_worker=0,
        specs=SPECS,
        bucket_bytes=BUCKET_BYTES,
        timeout_s=1.0,
    )
    started = time.monotonic()
    problem = end.open(settings, 0, CPU)
    assert problem.startswith("lost the other end of the channel")
    assert "generator_0 (worker 0 of 1), generator_1 (worker 0 of 1)" in problem
    assert time.monotonic() - started < 15
    end.close()


def test_memory_of_a_process_that_has_gone_is_said():
    segment = SharedSegment(64)
    path = segment.path
    segment.close()
    with pytest.raises(PeerLost, match=r"needs learner and engines on one machine.*collective"):
        MappedHostMemory().map(f'{{"path": "{path}", "bytes": 64, "kept": true}}')


def test_a_worker_whose_process_has_ended_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(messages, "LOOK_S", 0.05)
    settings = ChannelSettings(
        kind=IPC,
        name="watched",
        addresses=(("127.0.0.1", 1),),
        workers=WORKERS,
        first_worker=0,
        specs=SPECS,
        bucket_bytes=BUCKET_BYTES,
        timeout_s=60.0,
    )
    sender = messages.Messages(HashStore(), settings)
    ended = subprocess.Popen(["sleep", "60"])
    for worker, pid in enumerate((os.getpid(), ended.pid)):
        sender.put(messages._joined(worker), f"{pid} {messages._process_names()}")
    sender.watch(range(2))
    sender.check()
    # It is a zombie then: its parent, this process, has not asked for it.
    ended.kill()
    started = time.monotonic()
    with pytest.raises(PeerLost, match=r"process of generator_1 \(worker 0 of 1\) has ended"):
        sender.wait(["never"], "a bucket was not loaded")
    assert time.monotonic() - started < 30
    ended.wait()
