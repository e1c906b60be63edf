"""The driver's part of a channel over fakes: who is connected with whom, and who is blamed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest

from rlhf_ray.calls import Call
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.publish import channel_transport
from rlhf_ray.publish.base import AVERAGE, LOST, POLICY, TransferSettings
from rlhf_ray.publish.channel import ChannelSettings
from rlhf_ray.publish.channel_transport import ChannelTransport
from rlhf_ray.testing.fake_waiter import InProcessPending, InProcessWaiter
from rlhf_ray.testing.fakes import done

SPECS = [("w", "float32", (4,))]
HANGS = object()


class Waiter(InProcessWaiter):
    """A waiter for which calls that hang are never done, and which fails for those that died."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def pending(self) -> InProcessPending:
        return Pending(self.waits)


class Pending(InProcessPending):
    """The calls of such a waiter; a short wait for one that hangs takes its time."""

    def __init__(self, waits: list[float]) -> None:
        super().__init__()
        self.waits = waits

    def take_done(self, *, phase: str, timeout_s: float) -> list[tuple[Call, Any]]:
        self.waits.append(timeout_s)
        ready = [call for call in self._calls if call.signal is not HANGS]
        for call in ready:
            self.discard(call)
            if isinstance(call.signal, RunFailed):
                raise call.signal
        if not ready:
            time.sleep(timeout_s if timeout_s < 1 else 0)
            late = next(iter(self._calls)).member
            raise RunFailed(f"{late} did not answer (phase {phase})\n--- stacks")
        return [(call, call.signal) for call in ready]


class Ends:
    """Two learner ranks and engines of one and two workers; results by name of the method."""

    def __init__(self, **results: list[Any]) -> None:
        self.results = results
        self.opened: list[Any] = []
        self.sent: list[Any] = []
        self.closed = 0

    def _calls(self, role: str, name: str, default: list[Any]) -> list[Call]:
        signals = self.results.get(name, default)
        return [done(role, rank, signal=signal) for rank, signal in enumerate(signals)]


class Source(Ends):
    def weight_specs(self) -> Call:
        return done("learner", 0, signal=SPECS)

    def listen_for_receivers(self) -> list[Call]:
        return self._calls("learner", "listen", [("a", 1), ("b", 2)])

    def open_channel(self, settings: ChannelSettings) -> list[Call]:
        self.opened.append(settings)
        return self._calls("learner", "open", ["", ""])

    def send_weights(self, what: str) -> list[Call]:
        self.sent.append(what)
        return self._calls("learner", "send", ["", ""])

    def close_channel(self) -> list[Call]:
        self.closed += 1
        return []


class Receivers(Ends):
    def num_workers(self) -> list[Call]:
        return self._calls("generator", "workers", [1, 2])

    def open_channel(self, settings: Sequence[ChannelSettings]) -> list[Call]:
        self.opened.extend(settings)
        return self._calls("generator", "open", ["", ""])

    def receive_weights(self, version: int) -> list[Call]:
        self.sent.append(version)
        return self._calls("generator", "receive", ["", ""])

    def close_channel(self) -> list[Call]:
        self.closed += 1
        return []


def opened(source: Source, receivers: Receivers) -> tuple[ChannelTransport, Waiter]:
    waiter = Waiter()
    settings = TransferSettings(bucket_bytes=7, phase="publish", timeout_s=100.0)
    transport = ChannelTransport("collective", waiter, settings)
    transport.open(source, receivers)
    return transport, waiter


def test_every_worker_gets_its_place():
    source, receivers = Source(), Receivers()
    transport, _ = opened(source, receivers)
    assert [end.first_worker for end in receivers.opened] == [0, 1]
    (learner,) = source.opened
    for end in (learner, *receivers.opened):
        assert (end.kind, end.name) == ("collective", learner.name)
        assert end.workers == (1, 2)
        assert end.addresses == (("a", 1), ("b", 2))
        assert end.specs == tuple(SPECS)
        assert end.bucket_bytes == 7
        # The ends give up before the driver does.
        assert 0 < end.timeout_s < 100
    transport.open(source, receivers)
    assert source.opened[1].name != learner.name
    transport.close()
    assert (source.closed, receivers.closed) == (1, 1)


def test_one_call_per_end_and_publish():
    source, receivers = Source(), Receivers()
    transport, _ = opened(source, receivers)
    transport.send(3)
    transport.send(4, what=AVERAGE)
    assert receivers.sent == [3, 4]
    assert source.sent == [POLICY, AVERAGE]


@pytest.mark.parametrize("where", ["open", "send"])
def test_the_end_with_its_own_failure_is_named_first(where):
    lost = f"{LOST}: reset"
    engines = Receivers(**{"open" if where == "open" else "receive": [lost, "CUDA out of memory"]})
    source = Source(**{where: [lost, ""]})

    def publish() -> None:
        transport, _ = opened(source, engines)
        transport.send(3)

    with pytest.raises(RunFailed) as caught:
        publish()
    words = str(caught.value)
    assert "failed: generator_1: CUDA out of memory. Others noticed: generator_0: lost" in words
    assert "version 3" in words if where == "send" else "opening the channel" in words
    assert "publish.transport=object_store" in words


def test_an_end_that_says_nothing_is_named(monkeypatch):
    """Not for the whole deadline: the others have failed already."""
    monkeypatch.setattr(channel_transport, "_OTHERS_S", 0.2)
    source = Source(send=["no answer from generator_1 (worker 0 of 2) after bucket 3", ""])
    transport, waiter = opened(source, Receivers(receive=[f"{LOST}: reset", HANGS]))
    waiter.waits.clear()
    with pytest.raises(RunFailed) as caught:
        transport.send(3)
    first, *rest = str(caught.value).splitlines()
    assert first.startswith("generator_1: no answer while publishing version 3")
    assert "learner_0: no answer from generator_1 (worker 0 of 2)" in first
    # The waiter's own words, with the stacks, follow.
    assert rest == ["generator_1 did not answer (phase publish)", "--- stacks"]
    assert waiter.waits[0] == pytest.approx(100, abs=5)
    assert waiter.waits[1] <= channel_transport._OTHERS_S


@pytest.mark.parametrize("first", ["", f"{LOST}: reset"])
def test_an_end_that_died_is_named_by_the_waiter(first):
    dead = RunFailed("generator_1 died")
    transport, _ = opened(Source(), Receivers(receive=[first, dead]))
    with pytest.raises(RunFailed, match=r"^generator_1 died"):
        transport.send(3)


def test_all_late_without_a_failure_is_the_waiters_failure():
    transport, _ = opened(Source(send=[HANGS, HANGS]), Receivers(receive=[HANGS, HANGS]))
    with pytest.raises(RunFailed, match=r"^generator_0 did not answer \(phase publish\)"):
        transport.send(3)
