"""A replica: a server process that is restarted when it dies or stops answering."""

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
from rlhf_ray.serving.server_process import (
    HEALTHY,
    ServerCommand,
    ServerProcess,
    how_it_ended,
    num_engine_steps,
    num_garbage,
)

_POLL_S = 0.2
_TAIL_LINES = 12
# Start of the log line of a server that refuses its arguments; see
# `generation.server.openai_server`.
_REFUSAL = "refused: "

Report = Callable[[str], None]


class ReplicaState(StrEnum):
    """State of a replica: it takes requests only when ready."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaLimits:
    """Time limits and restart limits of a replica.

    Attributes:
        start_s: longest start.
        every_s: time between two health checks.
        health_timeout_s, stall_s, max_restarts, restart_window_s: see `ServeConfig`.
    """

    start_s: float
    every_s: float
    health_timeout_s: float
    stall_s: float
    max_restarts: int
    restart_window_s: float

    @classmethod
    def of(cls, serve: ServeConfig, *, start_s: float) -> ReplicaLimits:
        """Take the limits from the configuration."""
        return cls(
            start_s=start_s,
            every_s=serve.health_every_s,
            health_timeout_s=serve.health_timeout_s,
            stall_s=serve.stall_s,
            max_restarts=serve.max_restarts,
            restart_window_s=serve.restart_window_s,
        )


class Replica:
    """One server process at a time, and its restarts.

    Attributes:
        index: position of the replica in the fleet.
        in_flight: answers that are waited for; a request may ask for several.
        context_tokens: longest prompt and answer of the model; None until the server has told.
        restarts: number of restarts so far.
    """

    def __init__(
        self, index: int, server: ServerCommand, limits: ReplicaLimits, report: Report
    ) -> None:
        self.index = index
        self.state = ReplicaState.STARTING
        self.in_flight = 0
        self.context_tokens: int | None = None
        self.restarts = 0
        self._server = server
        self._limits = limits
        self._report = report
        self._process: ServerProcess | None = None
        self._has_been_ready = False
        # Answers of the current server that vLLM has counted as sampled from logits with NaN.
        self._num_garbage = 0
        self._look_now = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Process id of the current server."""
        return self._process.pid if self._process else None

    @contextmanager
    def asked(self, num_answers: int) -> Iterator[aiohttp.ClientSession]:
        """Lend the connections to the server for one request, and count its answers."""
        assert self._process is not None, "only a ready replica is asked"
        self.in_flight += num_answers
        try:
            yield self._process.session
        finally:
            self.in_flight -= num_answers

    def suspect(self) -> None:
        """Check the server now instead of at the next health check: a request to it failed."""
        self._look_now.set()

    async def is_healthy(self) -> bool:
        """Ask the server now."""
        process = self._process
        return (
            process is not None
            and process.status is None
            and await process.health(self._limits.health_timeout_s) == HEALTHY
        )

    async def metrics(self) -> str:
        """Metrics of the server in Prometheus' format; empty if no server is ready."""
        if self._process is None or self.state is not ReplicaState.READY:
            return ""
        return await self._process.metrics(self._limits.health_timeout_s)

    async def supervise(self) -> None:
        """Keep a server running until cancelled.

        Raises:
            RequestError: the server refuses its arguments, or the model computes NaN.
            RunFailed: the server never got ready, or was restarted too often.
        """
        # Times of the failures within the last `restart_window_s`.
        recent: deque[float] = deque()
        try:
            while True:
                reason = await self._live_once()
                if not self._has_been_ready:
                    raise self._first_failure(reason)
                now = time.monotonic()
                recent.append(now)
                while recent[0] < now - self._limits.restart_window_s:
                    recent.popleft()
                if len(recent) > self._limits.max_restarts:
                    raise RunFailed(self._given_up(reason, len(recent)))
                self.restarts += 1
                self._report(
                    f"replica {self.index}: {reason}; starting it again ({len(recent)} of at most "
                    f"{self._limits.max_restarts} times in {self._limits.restart_window_s:g} s)"
                )
        finally:
            self.state = ReplicaState.FAILED

    async def _live_once(self) -> str:
        """Run one server from its start to its end; returns why it ended."""
        self.state = ReplicaState.STARTING
        began = time.monotonic()
        process = await ServerProcess.start(self._server)
        self._process = process
        answers = True
        try:
            reason = await self._not_ready(process)
            if reason is None:
                await self._read_context(process)
                await self._refuse_garbage(process)
                self.state = ReplicaState.READY
                self._has_been_ready = True
                self._report(
                    f"replica {self.index}: ready after {time.monotonic() - began:.0f} s "
                    f"(process {process.pid})"
                )
                reason = await self._wrong(process)
            answers = False
            return reason
        finally:
            # First, before anything is awaited: the fleet must send no more requests here.
            self.state = ReplicaState.STARTING
            # Shielded, so that a cancelled replica still ends its server.
            await asyncio.shield(process.end(orderly=answers))

    async def _read_context(self, process: ServerProcess) -> None:
        self.context_tokens = await process.context_tokens(self._limits.health_timeout_s)
        if self.context_tokens is None:
            self._report(
                f"replica {self.index}: its server does not tell the length of the model's "
                f"context; prompts are limited by serve.limits.prompt_characters and "
                f"serve.max_request_bytes alone"
            )

    async def _refuse_garbage(self, process: ServerProcess) -> None:
        """Refuse a model that says nothing but garbage, by one token of it.

        Raises:
            RequestError: its logits are NaN.
        """
        await process.answer_once(self._limits.start_s)
        self._num_garbage = num_garbage(await process.metrics(self._limits.health_timeout_s))
        if self._num_garbage:
            raise RequestError(
                f"replica {self.index}: the model computes NaN for a short text, so that every "
                f"answer would be garbage: weights are damaged, or numbers exceed the number "
                f"format; check the files of model.path, or set generation.dtype=float32"
            )

    def _tell_garbage(self, metrics: str) -> None:
        """Tell of answers since the last look that were sampled from logits with NaN."""
        now = num_garbage(metrics)
        if now > self._num_garbage:
            self._report(
                f"replica {self.index}: {now - self._num_garbage} answers are garbage: the model "
                f"computed NaN for them ({now} so far); check the files of model.path, or set "
                f"generation.dtype=float32"
            )
            self._num_garbage = now

    async def _not_ready(self, process: ServerProcess) -> str | None:
        """Wait until the server is ready (None); else returns what went wrong."""
        deadline = time.monotonic() + self._limits.start_s
        while time.monotonic() < deadline:
            if await process.ended_within(_POLL_S):
                return f"{how_it_ended(process.status)} while it started"
            if await process.health(self._limits.health_timeout_s) == HEALTHY:
                return None
        return f"was not ready after deadlines.start_s={self._limits.start_s:g} s"

    async def _wrong(self, process: ServerProcess) -> str:
        """Watch the server until something is wrong with it; returns what."""
        # The engine's step count at its last change, and the time of that change: a server whose
        # engine hangs may still answer /health, but its count stands still.
        steps: float | None = None
        moved = time.monotonic()
        while True:
            if await self._ended_or_suspected(process):
                return how_it_ended(process.status)
            health = await process.health(self._limits.health_timeout_s)
            if health != HEALTHY:
                # A server that has just died may need a moment until its status is known.
                await process.ended_within(_POLL_S)
                return how_it_ended(process.status, health)
            metrics = await process.metrics(self._limits.health_timeout_s)
            self._tell_garbage(metrics)
            now_steps = num_engine_steps(metrics)
            if self.in_flight == 0 or now_steps is None or now_steps != steps:
                steps, moved = now_steps, time.monotonic()
            elif time.monotonic() - moved > self._limits.stall_s:
                return f"made no step for {self._limits.stall_s:g} s with requests in flight"

    async def _ended_or_suspected(self, process: ServerProcess) -> bool:
        """Wait until the next health check is due; returns whether the server has ended."""
        end = asyncio.ensure_future(process.ended_within(self._limits.every_s))
        look = asyncio.ensure_future(self._look_now.wait())
        try:
            await asyncio.wait({end, look}, return_when=asyncio.FIRST_COMPLETED)
            self._look_now.clear()
            return end.done() and end.result()
        finally:
            for task in (end, look):
                task.cancel()
            await asyncio.gather(end, look, return_exceptions=True)

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
            f"serve.restart_window_s={self._limits.restart_window_s:g} s, and is not started again "
            f"(serve.max_restarts={self._limits.max_restarts}); the cause is in {self._server.log}"
        )


def log_tail(log: Path) -> list[str]:
    """The last lines of a log that are not blank."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip()][-_TAIL_LINES:]
