"""A waiter in this process, over calls that hold their results.

Calls are done at once, and handed out in an order that a test may choose.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rlhf_ray.calls import Call


class InProcessWaiter:
    """A `CallWaiter` over calls that hold their results.

    Args:
        seed: draws the order in which calls that are done at the same time are handed out;
            None keeps the order in which they were made.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._random = None if seed is None else random.Random(seed)
        self.step = 0
        self.phases: list[str] = []
        self._work: Callable[[], None] | None = None

    def begin_step(self, step: int) -> None:
        self.step = step

    def results(self, calls: Sequence[Call], *, phase: str, timeout_s: float) -> list[Any]:
        self.phases.append(phase)
        if self._work is not None:
            self._work()
        return [call.signal for call in calls]

    @contextmanager
    def meanwhile(self, work: Callable[[], None]) -> Iterator[None]:
        """Work once in every `results`."""
        before, self._work = self._work, work
        try:
            yield
        finally:
            self._work = before

    def pending(self) -> InProcessPending:
        return InProcessPending(self.choose)

    def choose(self, calls: Sequence[Call]) -> Call:
        """The call that is handed out next."""
        return self._random.choice(calls) if self._random else calls[0]

    def stream(
        self, call: Call, *, phase: str, timeout_s: float, others: Sequence[Call] = ()
    ) -> Iterator[Any]:
        yield from call.signal


class InProcessPending:
    """A `PendingCalls` that hands out one call at a time: what `choose` picks, else the first."""

    def __init__(self, choose: Callable[[Sequence[Call]], Call] | None = None) -> None:
        self._choose = choose
        self._calls: OrderedDict[Call, None] = OrderedDict()

    def add(self, call: Call) -> None:
        self._calls[call] = None

    def discard(self, call: Call) -> None:
        self._calls.pop(call, None)

    def take_done(self, *, phase: str, timeout_s: float) -> list[tuple[Call, Any]]:
        if self._choose is None:
            call, _ = self._calls.popitem(last=False)
        else:
            call = self._choose(list(self._calls))
            del self._calls[call]
        return [(call, call.signal)]

    def take_ready(self, *, phase: str) -> list[tuple[Call, Any]]:
        """All calls: they are done at once."""
        calls = list(self._calls)
        self._calls.clear()
        return [(call, call.signal) for call in calls]
