"""Calls of Ray actors under way, handed out as they finish.

`ray.wait` walks through all references that it is given, and wakes up for every one that is ready:
the driver's time for a batch then grows with the square of the number of requests. Here Ray itself
reports a finished call, once, so that a wait costs what has finished since the last one.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

from rlhf_ray.calls import Call

Done = tuple[Call, "Future[Any]"]


class CallSet:
    """Calls, each with the future of its signal."""

    def __init__(self, calls: Iterable[Call] = ()) -> None:
        self._calls: dict[Call, None] = {}
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
        self._calls[call] = None
        done = self._done  # Not `self`: a call that never ends would keep it.
        call.signal.future().add_done_callback(lambda future: done.put((call, future)))

    def discard(self, call: Call) -> None:
        """Forget a call; nothing happens if it is not here."""
        self._calls.pop(call, None)

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
        del self._calls[done[0]]
        return [done]
