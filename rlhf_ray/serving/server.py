"""The process around the service: a socket, a thread for the model, an orderly end."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette

from rlhf_ray.config.errors import RequestError
from rlhf_ray.serving.service import ScoreService, TextScorer


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
    service: ScoreService,
    listener: socket.socket,
    *,
    executor: Executor,
    load: Callable[[], TextScorer],
    report: Callable[[str], None],
) -> None:
    """Answer requests until SIGTERM or SIGINT; those that are under way are answered first.

    Args:
        load: makes the model, in the executor's thread, while requests are told to wait.
        report: takes lines for people.

    Raises:
        KeyboardInterrupt: SIGINT ended it.
        Exception: whatever `load` raised.
    """
    failures: list[BaseException] = []

    async def begin() -> None:
        loop = asyncio.get_running_loop()
        try:
            service.begin(await loop.run_in_executor(executor, load))
            report(f"ready at {address_of(listener)}")
        except Exception as error:  # noqa: BLE001 - raised again where the server has ended
            failures.append(error)
            server.should_exit = True

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        beginning = asyncio.create_task(begin())
        yield
        beginning.cancel()

    server = uvicorn.Server(
        uvicorn.Config(
            service.application(lifespan),
            log_level="warning",
            access_log=False,
            lifespan="on",
            # No colours and no handlers of its own: what it says goes where everything goes.
            log_config=None,
        )
    )

    def end(*_: object) -> None:
        server.should_exit = True

    # uvicorn ends in order on SIGTERM and then raises it again, for whoever was there before.
    before = signal.signal(signal.SIGTERM, end)
    try:
        server.run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)
    if failures:
        raise failures[0]
