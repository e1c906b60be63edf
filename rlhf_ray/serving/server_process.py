"""Server process of a replica: start, health, metrics, end of its whole process group."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

HEALTHY = 200
_TERMINATE_S = 10.0
# Prefix of the metric line with vLLM's count of engine steps.
_STEPS = "vllm:iteration_tokens_total_count"
# Prefix of the line with vLLM's count of answers that were sampled from logits with NaN.
_GARBAGE = "vllm:corrupted_requests_total"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerCommand:
    """Command line and surroundings of a replica's server.

    Attributes:
        environment: variables added to those of this process.
        socket: Unix socket at which the server answers.
        log: file to which its output is appended.
    """

    command: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    socket: Path
    log: Path


class ServerProcess:
    """A running server, the leader of its process group.

    Its standard input is a pipe of this process: it closes when this process ends, however that
    happens, and the server then ends too.
    """

    def __init__(self, process: Process, socket: Path) -> None:
        self._process = process
        self.session = aiohttp.ClientSession(
            "http://replica",
            connector=aiohttp.UnixConnector(path=str(socket), limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            auto_decompress=False,
        )

    @classmethod
    async def start(cls, server: ServerCommand) -> ServerProcess:
        """Start the server; it is not ready to answer yet."""
        server.socket.unlink(missing_ok=True)
        with server.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *server.command,
                stdin=PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **server.environment},
                start_new_session=True,
            )
        return cls(process, server.socket)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while the server runs."""
        return self._process.returncode

    async def ended_within(self, seconds: float) -> bool:
        """Wait up to `seconds` for the end of the server; returns whether it has ended."""
        try:
            # Shielded: a time-out must cancel this wait only, not the process's own.
            await asyncio.wait_for(asyncio.shield(self._process.wait()), seconds)
        except TimeoutError:
            return False
        return True

    async def health(self, timeout_s: float) -> int | None:
        """HTTP status of /health; None if the server does not answer in time."""
        try:
            async with (
                asyncio.timeout(timeout_s),
                self.session.get("/health", headers={"Connection": "close"}) as reply,
            ):
                return reply.status
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    async def context_tokens(self, timeout_s: float) -> int | None:
        """Longest prompt and answer of the model; None if the server does not tell."""
        try:
            async with (
                asyncio.timeout(timeout_s),
                self.session.get("/v1/models", headers={"Connection": "close"}) as reply,
            ):
                said = await reply.json()
                return int(said["data"][0]["max_model_len"])
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, LookupError, TypeError):
            return None

    async def answer_once(self, timeout_s: float) -> None:
        """Let the model say one token, for its metrics; nothing happens where it cannot."""
        with contextlib.suppress(
            aiohttp.ClientError, OSError, TimeoutError, ValueError, LookupError
        ):
            async with asyncio.timeout(timeout_s):
                async with self.session.get("/v1/models") as reply:
                    name = (await reply.json())["data"][0]["id"]
                asked = {"model": name, "prompt": "1 + 1 =", "max_tokens": 1}
                async with self.session.post("/v1/completions", json=asked) as reply:
                    await reply.read()

    async def metrics(self, timeout_s: float) -> str:
        """Metrics in Prometheus' format; empty if the server gives none in time."""
        try:
            async with (
                asyncio.timeout(timeout_s),
                self.session.get("/metrics", headers={"Connection": "close"}) as reply,
            ):
                return await reply.text() if reply.status == 200 else ""
        except (aiohttp.ClientError, OSError, TimeoutError):
            return ""

    async def end(self, *, orderly: bool) -> None:
        """End the server and everything that it has started.

        Args:
            orderly: ask it to end first; a server that does not answer is killed at once.
        """
        if orderly and self.status is None:
            self._process.terminate()
            await self.ended_within(_TERMINATE_S)
        self.kill()
        await self._process.wait()
        await self.session.close()

    def kill(self) -> None:
        """Kill the process group at once, also what is left of it after the server has ended."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def num_engine_steps(metrics: str) -> float | None:
    """Engine steps so far, from metrics in Prometheus' format; None if they are not there."""
    return _sum_of(metrics, _STEPS)


def num_garbage(metrics: str) -> int:
    """Answers so far that were sampled from logits with NaN, from metrics as above."""
    return int(_sum_of(metrics, _GARBAGE) or 0)


def _sum_of(metrics: str, prefix: str) -> float | None:
    found = [line for line in metrics.splitlines() if line.startswith(prefix)]
    return sum(float(line.rpartition(" ")[2]) for line in found) if found else None


def how_it_ended(status: int | None, health: int | None = None) -> str:
    """Describe an exit status, or the health of a server that still runs."""
    if status is None and health is None:
        return "does not answer"
    if status is None:
        return f"says that it is not healthy (HTTP status {health})"
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
