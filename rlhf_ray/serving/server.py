"""The process of a service: socket, HTTP server, a background task, orderly end."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import uvicorn
from starlette.applications import Starlette

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.deploy import ServeLimitsConfig
from rlhf_ray.serving.connections import LimitedConnection, room_for_connections

# Context that is entered when the server starts and left when it ends.
Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        RequestError: the address is not one of this machine, or is in use.
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
    """URL of the service at a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    make_application: Callable[[Lifespan], Starlette],
    listener: socket.socket,
    *,
    work: Callable[[], Coroutine[Any, Any, None]],
    limits: ServeLimitsConfig,
    report: Callable[[str], None],
    drain_s: float | None = None,
) -> None:
    """Answer requests until SIGTERM or SIGINT; requests in flight are answered before the end.

    Args:
        make_application: makes the application from the lifespan to give it.
        work: background task that runs with the server, and is cancelled at its end.
        limits: limits of connections.
        report: takes lines for people.
        drain_s: time limit for requests in flight at the end; None waits for all of them.

    Raises:
        KeyboardInterrupt: SIGINT ended the server.
        Exception: as `work` raised it; the server ends then.
    """
    max_connections = room_for_connections(limits.connections, report)
    server = _Server(make_application, work, limits, max_connections, drain_s)
    # uvicorn ends in order on SIGTERM and then raises the signal again for the handler that was
    # installed before. The default one would kill this process with a signal's exit status.
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
    limits: ServeLimitsConfig,
) -> Iterator[Callable[[], None]]:
    """Run a server in a thread as long as the block runs; see `serve`.

    Yields:
        A function that raises the error of `work`, if there was one.
    """
    server = _Server(make_application, work, limits, limits.connections, drain_s=1)
    thread = threading.Thread(target=server.run, args=(listener,), daemon=True)
    thread.start()
    try:
        yield server.check
    finally:
        server.end()
        thread.join()


class _Server:
    """uvicorn with a background task."""

    def __init__(
        self,
        make_application: Callable[[Lifespan], Starlette],
        work: Callable[[], Coroutine[Any, Any, None]],
        limits: ServeLimitsConfig,
        max_connections: int,
        drain_s: float | None,
    ) -> None:
        connection: Any = partial(LimitedConnection, limits, max_connections)
        self._work = work
        self._failures: list[BaseException] = []
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                make_application(self._lifespan),
                http=connection,
                # A connection that is handed over to a web socket would have no limits.
                ws="none",
                timeout_keep_alive=limits.idle_s,
                log_level="warning",
                access_log=False,
                lifespan="on",
                # No handlers and colours from uvicorn: its log goes where the process's log goes.
                log_config=None,
                timeout_graceful_shutdown=None if drain_s is None else max(1, round(drain_s)),
            )
        )

    def run(self, listener: socket.socket) -> None:
        """Answer requests until `end` or a signal."""
        self._uvicorn.run(sockets=[listener])

    def end(self, *_: object) -> None:
        """End the server in order; also serves as a signal handler."""
        self._uvicorn.should_exit = True

    def check(self) -> None:
        """Raise the error of the background task, if there was one."""
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
