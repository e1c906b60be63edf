"""A replica: a server that is started again when it dies or stops answering."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import aiohttp

from rlhf_ray.config.errors import RequestError, RunFailed
from rlhf_ray.config.groups.deploy import ServeConfig
from rlhf_ray.serving.child import HEALTHY, Child, ServerCommand, how_it_ended, num_engine_steps

_POLL_S = 0.2
_TAIL_LINES = 12
# What a server writes where the request to it was wrong; see `generation.openai_server`.
_REFUSAL = "refused: "

Report = Callable[[str], None]


class ReplicaState(StrEnum):
    """What a replica can do now."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Watch:
    """How a replica is watched.

    Attributes:
        start_s: longest start.
        every_s: between two looks.
        health_timeout_s, stall_s, max_restarts, restart_window_s: see `ServeConfig`.
    """

    start_s: float
    every_s: float
    health_timeout_s: float
    stall_s: float
    max_restarts: int
    restart_window_s: float

    @classmethod
    def of(cls, serve: ServeConfig, *, start_s: float) -> Watch:
        """As the configuration says."""
        return cls(
            start_s=start_s,
            every_s=serve.health_every_s,
            health_timeout_s=serve.health_timeout_s,
            stall_s=serve.stall_s,
            max_restarts=serve.max_restarts,
            restart_window_s=serve.restart_window_s,
        )


class Replica:
    """One server and its successors.

    Attributes:
        index: which of the replicas it is.
        state: what it can do now.
        in_flight: requests that it has.
        restarts: how often it was started again.
    """

    def __init__(self, index: int, server: ServerCommand, watch: Watch, report: Report) -> None:
        self.index = index
        self.state = ReplicaState.STARTING
        self.in_flight = 0
        self.restarts = 0
        self._server = server
        self._watch = watch
        self._report = report
        self._child: Child | None = None
        self._has_been_ready = False
        self._look_now = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Of the server that there is now."""
        return self._child.pid if self._child else None

    @contextmanager
    def asked(self) -> Iterator[aiohttp.ClientSession]:
        """Connections to the server, for one request."""
        assert self._child is not None, "only what is ready is asked"
        self.in_flight += 1
        try:
            yield self._child.session
        finally:
            self.in_flight -= 1

    def suspect(self) -> None:
        """Something went wrong with it: look at it now and not at the next turn."""
        self._look_now.set()

    async def metrics(self) -> str:
        """Of the server, in Prometheus' format; empty where there is none to ask."""
        if self._child is None or self.state is not ReplicaState.READY:
            return ""
        return await self._child.metrics(self._watch.health_timeout_s)

    async def supervise(self) -> None:
        """Keep a server running until cancelled.

        Raises:
            RequestError: the server refuses its arguments.
            RunFailed: it never got ready, or has been started again too often.
        """
        recent: deque[float] = deque()
        try:
            while True:
                reason = await self._live_once()
                if not self._has_been_ready:
                    raise self._first_failure(reason)
                now = time.monotonic()
                recent.append(now)
                while recent[0] < now - self._watch.restart_window_s:
                    recent.popleft()
                if len(recent) > self._watch.max_restarts:
                    raise RunFailed(self._given_up(reason, len(recent)))
                self.restarts += 1
                self._report(
                    f"replica {self.index}: {reason}; starting it again ({len(recent)} of at most "
                    f"{self._watch.max_restarts} times in {self._watch.restart_window_s:g} s)"
                )
        finally:
            self.state = ReplicaState.FAILED

    async def _live_once(self) -> str:
        """One server from its start to its end; returns why it ended."""
        self.state = ReplicaState.STARTING
        began = time.monotonic()
        child = await Child.start(self._server)
        self._child = child
        answers = True
        try:
            reason = await self._not_ready(child)
            if reason is None:
                self.state = ReplicaState.READY
                self._has_been_ready = True
                self._report(
                    f"replica {self.index}: ready after {time.monotonic() - began:.0f} s "
                    f"(process {child.pid})"
                )
                reason = await self._wrong(child)
            answers = False
            return reason
        finally:
            # Before anything is waited for: nobody may be sent to it any more.
            self.state = ReplicaState.STARTING
            await asyncio.shield(child.end(orderly=answers))

    async def _not_ready(self, child: Child) -> str | None:
        """Wait until it is ready; else what came in between."""
        deadline = time.monotonic() + self._watch.start_s
        while time.monotonic() < deadline:
            if await child.ended_within(_POLL_S):
                return f"{how_it_ended(child.status)} while it started"
            if await child.health(self._watch.health_timeout_s) == HEALTHY:
                return None
        return f"was not ready after deadlines.start_s={self._watch.start_s:g} s"

    async def _wrong(self, child: Child) -> str:
        """Watch it until something is wrong with it; returns what."""
        steps: float | None = None
        moved = time.monotonic()
        while True:
            if await self._ended_or_suspected(child):
                return how_it_ended(child.status)
            health = await child.health(self._watch.health_timeout_s)
            if health != HEALTHY:
                # One that has just died says so only now.
                await child.ended_within(_POLL_S)
                return how_it_ended(child.status, health)
            now_steps = await self._steps(child)
            if self.in_flight == 0 or now_steps is None or now_steps != steps:
                steps, moved = now_steps, time.monotonic()
            elif time.monotonic() - moved > self._watch.stall_s:
                return f"made no step for {self._watch.stall_s:g} s with requests under way"

    async def _ended_or_suspected(self, child: Child) -> bool:
        """Wait until the next look is due; whether the server has ended."""
        end = asyncio.ensure_future(child.ended_within(self._watch.every_s))
        look = asyncio.ensure_future(self._look_now.wait())
        try:
            await asyncio.wait({end, look}, return_when=asyncio.FIRST_COMPLETED)
            self._look_now.clear()
            return end.done() and end.result()
        finally:
            for task in (end, look):
                task.cancel()
            await asyncio.gather(end, look, return_exceptions=True)

    async def _steps(self, child: Child) -> float | None:
        if self.in_flight == 0:
            return None
        return num_engine_steps(await child.metrics(self._watch.health_timeout_s))

    def _first_failure(self, reason: str) -> Exception:
        tail = log_tail(self._server.log)
        refusals = [line for line in tail if line.startswith(_REFUSAL)]
        if refusals:
            return RequestError(refusals[-1].removeprefix(_REFUSAL))
        return RunFailed(
            f"replica {self.index}: {reason}. The end of {self._server.log}:\n" + "\n".join(tail)
        )

    def _given_up(self, reason: str, num_failures: int) -> str:
        return (
            f"replica {self.index}: {reason}, for the {num_failures}th time within "
            f"serve.restart_window_s={self._watch.restart_window_s:g} s, and is not started again "
            f"(serve.max_restarts={self._watch.max_restarts}); the cause is in {self._server.log}"
        )


def log_tail(log: Path) -> list[str]:
    """The last lines of a log that say something."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip()][-_TAIL_LINES:]
