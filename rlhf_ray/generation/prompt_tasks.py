"""Sampling tasks: aborted prompt by prompt, and limited in the time that they run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_TICK_S = 0.2
_TICKS_PER_LIMIT = 10


class PromptTasks(Generic[T]):
    """Runs the coroutines of several prompts at once.

    A coroutine must turn its cancellation into a result: `abort` ends it, but its caller still
    waits for the outcome.
    """

    def __init__(self) -> None:
        self._prompt_ids: dict[asyncio.Task[T], str] = {}

    async def run(self, prompt_id: str, coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """Run the coroutines of one prompt; returns their results in order."""
        tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
        self._prompt_ids |= dict.fromkeys(tasks, prompt_id)
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                del self._prompt_ids[task]

    async def abort(self, prompt_ids: Sequence[str]) -> None:
        """Cancel the tasks of these prompts, and wait until they have ended.

        Prompts without running tasks are ignored.
        """
        given_up = set(prompt_ids)
        tasks = [task for task, prompt_id in self._prompt_ids.items() if prompt_id in given_up]
        # A task that is cancelled before its first step never runs, so it could return no result.
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


@dataclass(kw_only=True, slots=True, eq=False)
class _Limited:
    """A request with a time limit.

    Attributes:
        spent_s: time that counted so far, up to `since`.
    """

    request_id: str
    limit_s: float
    timeout: asyncio.Timeout
    since: float
    spent_s: float = 0.0


class RunClock:
    """Time limits that count only the time in which a request runs.

    A request does not run while it waits for others to leave the engine, or while a publish holds
    the engine. If none runs and the engine is not paused, time counts for all: so an engine that
    hangs is found out.

    Args:
        is_paused: whether the engine is held.
        has_begun: whether a request, by its id, has its first token.
    """

    def __init__(self, *, is_paused: Callable[[], bool], has_begun: Callable[[str], bool]) -> None:
        self._is_paused = is_paused
        self._has_begun = has_begun
        self._limited: set[_Limited] = set()
        # One task for all requests: a thousand timers of their own would keep the loop busy.
        self._ticker: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def limit(self, request_id: str, limit_s: float) -> AsyncIterator[None]:
        """Raise a TimeoutError inside, once the request has run for `limit_s`."""
        async with asyncio.timeout(None) as timeout:
            limited = _Limited(
                request_id=request_id,
                limit_s=limit_s,
                timeout=timeout,
                since=asyncio.get_running_loop().time(),
            )
            self._limited.add(limited)
            if self._ticker is None or self._ticker.done():
                self._ticker = asyncio.create_task(self._tick())
            try:
                yield
            finally:
                self._limited.discard(limited)

    async def _tick(self) -> None:
        while self._limited:
            shortest_s = min(limited.limit_s for limited in self._limited)
            await asyncio.sleep(min(_TICK_S, shortest_s / _TICKS_PER_LIMIT))
            now = asyncio.get_running_loop().time()
            counted: set[_Limited] = set()
            if not self._is_paused():
                begun = {one for one in self._limited if self._has_begun(one.request_id)}
                counted = begun or set(self._limited)
            for limited in list(self._limited):
                if limited in counted:
                    limited.spent_s += now - limited.since
                limited.since = now
                if limited.spent_s >= limited.limit_s:
                    self._limited.discard(limited)
                    limited.timeout.reschedule(now)
