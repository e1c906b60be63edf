"""Connections of a service: none is held open by a client that is slow or silent."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rlhf_ray.config.groups.deploy import ServeLimitsConfig

# Longest head of a request. The parser of httptools has no limit, and keeps it all in memory.
_MAX_HEAD_BYTES = 65536
# Files that a service has open apart from its connections.
_OTHER_FILES = 256


class LimitedConnection(HttpToolsProtocol):
    """A connection of uvicorn with limits for the client.

    uvicorn 0.54 limits the idle time after an answer, and nothing before: neither the time of a
    head nor its length, nor the wait for a client that does not read. The time of a body is limited
    where it is read (`arrival.read_body`).

    Args:
        limits: `client_s` for a head and for a client that does not read.
        max_connections: most open connections of the service.
        uvicorn: arguments of uvicorn.
    """

    def __init__(self, limits: ServeLimitsConfig, max_connections: int, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._limits = limits
        self._max_connections = max_connections
        self._is_in_body = self._has_ended_a_request = False
        # Bytes of a head that has not come to its end.
        self._head_bytes = 0
        self._idle_since = 0.0
        self._head_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it is open, and no request is being answered."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        return not is_answering and not self.transport.is_closing()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle_since = time.monotonic()
        self._head_timer = self.loop.call_later(self._limits.client_s, self._head_is_late)
        if len(self.connections) > self._max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._has_ended_a_request = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not self.is_idle:
            self._cancel_head_timer()
        elif self._head_timer is None:
            # The first piece of a further head, or the rest of a body that was refused.
            self._head_timer = self.loop.call_later(self._limits.client_s, self._head_is_late)
        if not self._is_in_body and not self._has_ended_a_request:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self._end("431 Request Header Fields Too Large", "the head is too long")

    def on_headers_complete(self) -> None:
        self._is_in_body, self._head_bytes = True, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_in_body, self._has_ended_a_request = False, True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._idle_since = time.monotonic()
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        self.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_timer = self.loop.call_later(self._limits.client_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
        super().resume_writing()

    def close(self) -> None:
        """Close it; what the client has not read by `client_s` is given up."""
        self.transport.close()
        if self._read_timer is not None:
            self._read_timer.cancel()
        self._read_timer = self.loop.call_later(self._limits.client_s, self.transport.abort)

    def _make_room(self) -> None:
        """Close the connection that is idle longest, or this one."""
        others = [c for c in self.connections if isinstance(c, LimitedConnection) and c is not self]
        idle = [connection for connection in others if connection.is_idle]
        if idle:
            min(idle, key=lambda connection: connection._idle_since).close()
        else:
            self._end(
                "503 Service Unavailable",
                f"{self._max_connections} connections are open, the most allowed; try again",
            )

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self.is_idle:
            return
        if self._head_bytes:
            self._end(
                "408 Request Timeout",
                f"the head did not come within serve.limits.client_s={self._limits.client_s:g} s",
            )
        else:
            self.close()

    def _end(self, status: str, message: str) -> None:
        self.transport.write(
            f"HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\n"
            f"content-length: {len(message)}\r\nconnection: close\r\n\r\n{message}".encode("ascii")
        )
        self.close()

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _cancel_timers(self) -> None:
        self._cancel_head_timer()
        if self._read_timer is not None:
            self._read_timer.cancel()


def room_for_connections(wanted: int, report: Callable[[str], None]) -> int:
    """Raise the limit of open files for so many connections; returns for how many there is room.

    A request has two files open: the client's connection and one to an engine.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * wanted + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    room = max(1, (allowed - _OTHER_FILES) // 2)
    if room < wanted:
        report(
            f"at most {room} connections, and not serve.limits.connections={wanted}: this process "
            f"may open {allowed} files; raise the limit with ulimit -n {needed}"
        )
    return min(room, wanted)
