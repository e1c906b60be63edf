"""One server process of a replica: started, asked for its health, ended with all it has started."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

HEALTHY = 200
_TERMINATE_S = 10.0
# vLLM's count of engine steps, and how one line of its metrics says so.
_STEPS = "vllm:iteration_tokens_total_count"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerCommand:
    """How the server of a replica is started.

    Attributes:
        environment: on top of that of this process.
        socket: Unix socket that it answers at.
        log: file that its output goes to, behind what is there.
    """

    command: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    socket: Path
    log: Path


class Child:
    """A server that runs, at the head of a process group.

    Its standard input is a pipe that ends with this process, however that ends.
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
    async def start(cls, server: ServerCommand) -> Child:
        """Start it; it is not ready then."""
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
        """Exit status, negative for a signal; None while it runs."""
        return self._process.returncode

    async def ended_within(self, seconds: float) -> bool:
        """Whether it has ended after so long, or before."""
        try:
            await asyncio.wait_for(asyncio.shield(self._process.wait()), seconds)
        except TimeoutError:
            return False
        return True

    async def health(self, timeout_s: float) -> int | None:
        """The status with which it answers for its health; None where it does not in time."""
        try:
            async with (
                asyncio.timeout(timeout_s),
                self.session.get("/health", headers={"Connection": "close"}) as reply,
            ):
                return reply.status
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    async def metrics(self, timeout_s: float) -> str:
        """Its metrics in Prometheus' format; empty where it gives none in time."""
        try:
            async with (
                asyncio.timeout(timeout_s),
                self.session.get("/metrics", headers={"Connection": "close"}) as reply,
            ):
                return await reply.text() if reply.status == 200 else ""
        except (aiohttp.ClientError, OSError, TimeoutError):
            return ""

    async def end(self, *, orderly: bool) -> None:
        """End it and whatever it has started.

        Args:
            orderly: let it end itself first; one that does not answer cannot.
        """
        if orderly and self.status is None:
            self._process.terminate()
            await self.ended_within(_TERMINATE_S)
        self.kill()
        await self._process.wait()
        await self.session.close()

    def kill(self) -> None:
        """Kill the whole group at once, what is left of it too."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def num_engine_steps(metrics: str) -> float | None:
    """Steps of the engine so far, of metrics in Prometheus' format; None where they do not say."""
    found = [line for line in metrics.splitlines() if line.startswith(_STEPS)]
    return sum(float(line.rpartition(" ")[2]) for line in found) if found else None


def how_it_ended(status: int | None, health: int | None = None) -> str:
    """An exit status in words; of what still runs, what it answers for its health."""
    if status is None and health is None:
        return "does not answer"
    if status is None:
        return f"says that it is not healthy (HTTP status {health})"
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
