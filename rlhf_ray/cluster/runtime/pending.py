"""Calls of Ray actors under way, handed out as they finish.

`ray.wait` walks through all references that it is given, and wakes up for every one that is ready:
the driver's time for a batch then grows with the square of the number of requests. Here Ray itself
reports a finished call, once, so that a wait costs what has finished since the last one.
"""

from __future__ import annotations

import queue
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.observe.spans.call_spans import CallSpans

Done = tuple[Call, "Future[Any]"]


class CallSet:
    """Calls, each with the future of its signal.

    Args:
        spans: is told of the times of every call that is taken out.
    """

    def __init__(self, calls: Iterable[Call] = (), spans: CallSpans | None = None) -> None:
        self._spans = spans
        # When each was added, and when its calls before it were done.
        self._calls: dict[Call, _Times] = {}
        # Calls of each worker: after a loss every wait asks, and walking through all calls each
        # time would make the time of a batch grow with their square.
        self._num_of: Counter[MemberName] = Counter()
        # Filled by a thread of Ray. A queue, because a wait for it ends at a signal, too.
        self._done: queue.SimpleQueue[Done] = queue.SimpleQueue()
        for call in calls:
            self.add(call)

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def calls(self) -> list[Call]:
        """The calls that were not taken out, in the order in which they were added."""
        return list(self._calls)

    def add(self, call: Call) -> None:
        if call not in self._calls:
            self._num_of[call.member] += 1
        times = self._calls[call] = _Times(time.monotonic())
        done = self._done  # Not `self`: a call that never ends would keep it.

        def finish(future: Future[Any]) -> None:
            times.note(call)
            done.put((call, future))

        for earlier in chain_of(call)[:-1] if self._spans else ():
            # A future fetches its result, which may be large where it is no work.
            if earlier.work is not None:
                earlier.signal.future().add_done_callback(partial(times.note, earlier))
        call.signal.future().add_done_callback(finish)

    def discard(self, call: Call) -> None:
        """Forget a call; nothing happens if it is not here."""
        if call in self._calls:
            self._remove(call)

    def has_of(self, members: Collection[MemberName]) -> bool:
        """Whether a call of these workers is here."""
        return any(self._num_of[member] for member in members)

    def take_of(self, members: Collection[MemberName]) -> list[Call]:
        """Take out all calls of these workers, done or not."""
        if not self.has_of(members):
            return []
        calls = [call for call in self._calls if call.member in members]
        for call in calls:
            self._remove(call)
        return calls

    def take_done(self, timeout_s: float) -> list[Done]:
        """Wait until a call is done; take out all that are. Empty: none was, in time."""
        deadline = time.monotonic() + max(0.0, timeout_s)
        found: list[Done] = []
        while not found:
            try:
                found += self._known(self._done.get(timeout=max(0.0, deadline - time.monotonic())))
                while True:
                    found += self._known(self._done.get_nowait())
            except queue.Empty:
                if time.monotonic() >= deadline:
                    break
        return found

    def _known(self, done: Done) -> list[Done]:
        """Take a call out; none if it was discarded."""
        if done[0] not in self._calls:
            return []
        times = self._remove(done[0])
        if self._spans:
            times.tell(done[0], self._spans)
        return [done]

    def _remove(self, call: Call) -> _Times:
        self._num_of[call.member] -= 1
        return self._calls.pop(call)


@dataclass(slots=True)
class _Times:
    """When a call was added, and when it and each call before it was done."""

    begun: float
    ends: dict[Call, float] = field(default_factory=dict)

    def note(self, call: Call, _: Future[Any] | None = None) -> None:
        self.ends[call] = time.monotonic()

    def tell(self, call: Call, spans: CallSpans) -> None:
        """Add the spans of the call and of those before it; one begins when the other ends."""
        begin = self.begun
        for link in chain_of(call):
            # One that was done before the wait began has taken none of its time.
            end = self.ends.get(link, begin)
            spans.add(link, begin, end)
            begin = max(begin, end)


class SupervisedCalls:
    """The `PendingCalls` of a supervisor, which knows what to do with failures.

    Args:
        take_done, take_ready: see `calls.PendingCalls`; both get the set first.
        spans: see `CallSet`.
    """

    def __init__(
        self,
        take_done: Callable[..., list[tuple[Call, Any]]],
        take_ready: Callable[..., list[tuple[Call, Any]]],
        spans: CallSpans | None = None,
    ) -> None:
        self._take_done = take_done
        self._take_ready = take_ready
        self._calls = CallSet(spans=spans)

    def add(self, call: Call) -> None:
        self._calls.add(call)

    def discard(self, call: Call) -> None:
        self._calls.discard(call)

    def take_done(self, *, phase: str, timeout_s: float) -> list[tuple[Call, Any]]:
        """See `calls.PendingCalls`."""
        return self._take_done(self._calls, phase=phase, timeout_s=timeout_s)

    def take_ready(self, *, phase: str) -> list[tuple[Call, Any]]:
        """See `calls.PendingCalls`."""
        return self._take_ready(self._calls, phase=phase)


def error_of(future: Future[Any]) -> RayError | None:
    """The failure of a finished call, if it has failed."""
    error = future.exception()
    if error is not None and not isinstance(error, RayError):
        raise error
    return error


def chain_of(call: Call) -> list[Call]:
    """The calls that a call waits for and itself, the first one first."""
    return [*(chain_of(call.before) if call.before else []), call]


def unfinished_of(call: Call) -> Call:
    """The call that a late call waits for: the first unfinished one of its chain, or itself."""
    for earlier in chain_of(call)[:-1]:
        if not ray.wait([earlier.signal], timeout=0)[0]:
            return earlier
    return call
