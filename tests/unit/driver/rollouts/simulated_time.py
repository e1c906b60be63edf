"""Simulated time: workers that take seconds, and a waiter that takes none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rlhf_ray.calls import Call
from rlhf_ray.records import Prompt
from rlhf_ray.testing.fakes import FakeGenerators, FakeRewards

SCORE_S = 3.0


class Clock:
    """Simulated time: a `CallWaiter` whose waits move the clock to the end of what they wait for.

    Attributes:
        now: seconds since the start.
        ends: when calls are done; a call without an entry is done at once.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.ends: dict[Call, float] = {}
        self._work: Callable[[], None] | None = None

    def begin_step(self, step: int) -> None: ...

    def results(self, calls: Sequence[Call], *, phase: str, timeout_s: float) -> list[Any]:
        del phase, timeout_s
        last = max([self.now, *(self.ends.get(call, 0.0) for call in calls)])
        while self._work is not None and self.now < last:
            self.now = min([last, *(end for end in self.ends.values() if end > self.now)])
            self._work()
        self.now = last
        return [call.signal for call in calls]

    @contextmanager
    def meanwhile(self, work: Callable[[], None]) -> Iterator[None]:
        self._work = work
        try:
            yield
        finally:
            self._work = None

    def pending(self) -> Clocked:
        return Clocked(self)

    def stream(
        self, call: Call, *, phase: str, timeout_s: float, others: Sequence[Call] = ()
    ) -> Iterator[Any]:
        yield from call.signal

    def busy(self, call: Call, seconds: float, *, since: float | None = None) -> Call:
        """Let a call take some time from now on, or from a later time."""
        self.ends[call] = max(self.now, since or 0.0) + seconds
        return call


class Clocked:
    """The `PendingCalls` of a clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._calls: list[Call] = []

    def add(self, call: Call) -> None:
        self._calls.append(call)

    def discard(self, call: Call) -> None:
        if call in self._calls:
            self._calls.remove(call)

    def take_done(self, *, phase: str, timeout_s: float) -> list[tuple[Call, Any]]:
        first = min(self._clock.ends.get(call, 0.0) for call in self._calls)
        self._clock.now = max(self._clock.now, first)
        return self.take_ready(phase=phase)

    def take_ready(self, *, phase: str) -> list[tuple[Call, Any]]:
        del phase
        ready = [c for c in self._calls if self._clock.ends.get(c, 0.0) <= self._clock.now]
        self._calls = [call for call in self._calls if call not in ready]
        return [(call, call.signal) for call in ready]


class StaggeredEngines(FakeGenerators):
    """Prompt n takes 1 + n % 4 seconds."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(2)
        self._clock = clock

    def generate(
        self, engine: int, prompt: Prompt, sample_indices: tuple[int, ...], *, together: int = 0
    ) -> Call:
        call = super().generate(engine, prompt, sample_indices, together=together)
        return self._clock.busy(call, 1.0 + prompt.stream_index % 4)


class SlowRewards(FakeRewards):
    """One worker that takes one group after the other, three seconds each."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(1)
        self._clock = clock
        self._free_at = 0.0

    def score(self, worker: int, parts: Sequence[Any]) -> Call:
        call = self._clock.busy(super().score(worker, parts), SCORE_S, since=self._free_at)
        self._free_at = self._clock.ends[call]
        return call
