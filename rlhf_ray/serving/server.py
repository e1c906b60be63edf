"""The process around a service: a socket, what runs beside it, an orderly end."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette

from rlhf_ray.config.errors import RequestError

# What begins and ends with a server.
Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        RequestError: it is no address of this machine, or in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise RequestError(
            f"serve.host={host}, serve.port={port}: cannot listen there: {error.strerror}; choose "
            f"another port (0 takes a free one) or an address of this machine"
        ) from error


def address_of(listener: socket.socket) -> str:
    """The URL of the service that listens."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    make_application: Callable[[Lifespan], Starlette],
    listener: socket.socket,
    *,
    work: Callable[[], Coroutine[Any, Any, None]],
    drain_s: float | None = None,
) -> None:
    """Answer requests until SIGTERM or SIGINT; those that are under way are answered first.

    Args:
        make_application: given what begins and ends with the server.
        work: runs beside the server, and is cancelled at its end.
        drain_s: how long what is under way may take at the end; None waits for all of it.

    Raises:
        KeyboardInterrupt: SIGINT ended it.
        Exception: whatever `work` raised, which ended the server.
    """
    server = _Server(make_application, work, drain_s)
    # uvicorn ends in order on SIGTERM and then raises it again, for whoever was there before.
    before = signal.signal(signal.SIGTERM, server.end)
    try:
        server.run(listener)
    finally:
        signal.signal(signal.SIGTERM, before)
    server.check()


@contextmanager
def serving(
    make_application: Callable[[Lifespan], Starlette],
    listener: socket.socket,
    *,
    work: Callable[[], Coroutine[Any, Any, None]],
) -> Iterator[Callable[[], None]]:
    """As `serve`, in a thread, as long as the block runs.

    Yields:
        a function that raises what `work` has raised, if it has.
    """
    server = _Server(make_application, work, drain_s=1)
    thread = threading.Thread(target=server.run, args=(listener,), daemon=True)
    thread.start()
    try:
        yield server.check
    finally:
        server.end()
        thread.join()


class _Server:
    """uvicorn, and what runs beside it."""

    def __init__(
        self,
        make_application: Callable[[Lifespan], Starlette],
        work: Callable[[], Coroutine[Any, Any, None]],
        drain_s: float | None,
    ) -> None:
        self._work = work
        self._failures: list[BaseException] = []
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                make_application(self._lifespan),
                log_level="warning",
                access_log=False,
                lifespan="on",
                # No colours and no handlers of its own: what it says goes where everything goes.
                log_config=None,
                timeout_graceful_shutdown=None if drain_s is None else max(1, round(drain_s)),
            )
        )

    def run(self, listener: socket.socket) -> None:
        """Answer until the end."""
        self._uvicorn.run(sockets=[listener])

    def end(self, *_: object) -> None:
        """Let it end, in order; also as the handler of a signal."""
        self._uvicorn.should_exit = True

    def check(self) -> None:
        """Raise what the work has raised."""
        if self._failures:
            raise self._failures[0]

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        working = asyncio.create_task(self._watched())
        yield
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)

    async def _watched(self) -> None:
        try:
            await self._work()
        except Exception as error:  # noqa: BLE001 - raised again where the server has ended
            self._failures.append(error)
            self.end()
