"""Connections of a service under clients that are slow, silent or many."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from rlhf_ray.config.groups.deploy import ServeLimitsConfig
from rlhf_ray.serving.connections import room_for_connections
from rlhf_ray.serving.server import listen, serving
from tests.unit.serving.endpoint import wait_until

pytestmark = pytest.mark.unit_slow

CLIENT_S = 1.0
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Service:
    """A service with some paths, and what happened to its answers."""

    def __init__(self, **limits: Any) -> None:
        settings: dict[str, Any] = {"client_s": CLIENT_S, "idle_s": 1}
        self.limits = ServeLimitsConfig(**(settings | limits))
        self.has_ended = False
        self._stack = ExitStack()
        listener = self._stack.enter_context(closing(listen("127.0.0.1", 0)))
        self.port = listener.getsockname()[1]

        def application(lifespan) -> Starlette:
            paths = {"/": self.hello, "/echo": self.echo, "/much": self.much, "/slow": self.slow}
            routes = [Route(path, call, methods=["GET", "POST"]) for path, call in paths.items()]
            return Starlette(routes=routes, lifespan=lifespan)

        self._stack.enter_context(
            serving(application, listener, work=self.nothing, limits=self.limits)
        )

    async def nothing(self) -> None:
        await asyncio.sleep(3600)

    async def hello(self, _: Request) -> Response:
        return PlainTextResponse("hello")

    async def echo(self, request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    async def slow(self, _: Request) -> Response:
        await asyncio.sleep(2 * CLIENT_S)
        return PlainTextResponse("slow")

    async def much(self, request: Request) -> Response:
        async def pieces():
            try:
                while True:
                    yield b"x" * 65536
                    if await request.is_disconnected():
                        return
            finally:
                self.has_ended = True

        return StreamingResponse(pieces())

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(sent)
        return connection

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


def rest(connection: socket.socket) -> bytes:
    """What comes until the connection is closed."""
    received = b""
    with connection:
        while piece := connection.recv(65536):
            received += piece
    return received


def keep_sending(connection: socket.socket, piece: bytes) -> None:
    """Send until the connection is closed, for ten seconds at most."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        connection.sendall(piece)
        time.sleep(0.05)


def test_a_connection_without_a_request_is_closed(service):
    began = time.monotonic()
    assert rest(service.connect()) == b""
    assert time.monotonic() - began >= CLIENT_S * 0.9


def test_a_slow_head(service):
    """One byte at a time: no piece is late, the whole is."""
    connection = service.connect(b"GET / HTTP/1.1\r\n")
    began = time.monotonic()
    with closing(connection), pytest.raises(ConnectionError):
        keep_sending(connection, b"a")
    assert time.monotonic() - began < 9


def test_a_slow_head_is_told(service):
    reply = rest(service.connect(b"GET / HTTP/1.1\r\nHost: "))
    assert reply.startswith(b"HTTP/1.1 408 ")
    assert reply.endswith(b"the head did not come within serve.limits.client_s=1 s")


def test_a_slow_second_head(service):
    connection = service.connect(GET)
    assert b"hello" in connection.recv(4096)
    connection.sendall(b"GET / HT")
    assert rest(connection).startswith(b"HTTP/1.1 408 ")


def test_an_idle_connection_is_closed(service):
    reply = rest(service.connect(GET))
    assert reply.count(b"hello") == 1
    assert b"408" not in reply


def test_a_head_without_an_end(service):
    connection = service.connect(b"GET / HTTP/1.1\r\nX: ")
    reply = b""
    try:
        for _ in range(20):
            connection.sendall(b"a" * 16384)
        reply = rest(connection)
    except ConnectionError:
        return  # Closed while we sent.
    assert reply.startswith(b"HTTP/1.1 431 ")


def test_a_pipelined_head_without_an_end(service):
    """It is sent while an answer is on its way."""
    connection = service.connect(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
    time.sleep(0.2)
    with closing(connection), pytest.raises(ConnectionError):
        keep_sending(connection, b"GET / HTTP/1.1\r\nX: " + b"a" * 65536)


def test_a_large_body_is_no_head(service):
    body = b"x" * 3_000_000
    head = f"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    connection = service.connect(head + body + head)
    connection.sendall(body)
    assert rest(connection).count(b"\r\n\r\n3000000") == 2


def test_the_rest_of_a_body_that_nothing_reads(service):
    """An early answer, and then a body that never ends."""
    connection = service.connect(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
    assert b"hello" in connection.recv(4096)
    with closing(connection), pytest.raises(ConnectionError):
        keep_sending(connection, b"a")


def test_an_answer_may_take_longer_than_a_head(service):
    assert b"slow" in rest(service.connect(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"))


def test_a_client_that_does_not_read(service):
    service.has_ended = False
    with service.connect(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n"):
        wait_until(lambda: service.has_ended, 20)


@pytest.fixture
def small() -> Iterator[Service]:
    service = Service(connections=3, client_s=60.0, idle_s=60)
    yield service
    service.close()


def test_the_longest_idle_makes_room(small):
    held = [small.connect() for _ in range(3)]
    time.sleep(0.1)
    with small.connect(GET) as fourth:
        assert b"hello" in fourth.recv(4096)
        assert rest(held[0]) == b""
        held[1].sendall(GET)
        assert b"hello" in held[1].recv(4096)
    for connection in held[1:]:
        connection.close()


def test_no_room(small):
    busy = [small.connect(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(3)]
    time.sleep(0.2)
    reply = rest(small.connect())
    assert reply.startswith(b"HTTP/1.1 503 ")
    assert b"3 connections are open, the most allowed" in reply
    for connection in busy:
        assert b"slow" in connection.recv(4096)
        connection.close()
    wait_until(lambda: b"hello" in small.connect(GET).recv(4096), 10)


def test_web_sockets_are_not_spoken(service):
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\n"
    with service.connect(b"GET / HTTP/1.1\r\nHost: x\r\n" + upgrade + b"\r\n") as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")


class TestOpenFiles:
    @pytest.fixture(autouse=True)
    def files(self, monkeypatch):
        """Limits of this process, which a test must not lower for the others."""
        self.limits = (1024, 4096)
        monkeypatch.setattr(resource, "getrlimit", lambda _: self.limits)
        monkeypatch.setattr(
            resource, "setrlimit", lambda _, limits: setattr(self, "limits", limits)
        )

    def test_enough(self):
        assert room_for_connections(300, pytest.fail) == 300
        assert self.limits == (1024, 4096)

    def test_raised(self):
        assert room_for_connections(1000, pytest.fail) == 1000
        assert self.limits == (2256, 4096)

    def test_not_enough(self):
        said: list[str] = []
        assert room_for_connections(5000, said.append) == 1920
        assert self.limits == (4096, 4096)
        assert "at most 1920 connections, and not serve.limits.connections=5000" in said[0]
        assert "ulimit -n 10256" in said[0]
