"""Messages over a socket, with a size limit and one deadline for the whole message.

`multiprocessing.connection.Connection` has neither: it takes the length that the other side
claims, and waits for the rest without an end.
"""

from __future__ import annotations

import select
import socket
import struct
import time

_HEADER = struct.Struct("!Q")
_CHUNK_BYTES = 1 << 16


class MessageTooLong(ValueError):  # noqa: N818 - it reads as a sentence
    """The other side announces a message that is longer than any that may come."""


class Channel:
    """One end of a stream socket that carries messages."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._buffer = bytearray()

    def send(self, message: bytes, timeout_s: float | None = None) -> None:
        """Send one message.

        Raises:
            TimeoutError: the other side did not take all of it in time.
            ConnectionError: the other side is closed.
        """
        self._end.settimeout(timeout_s)
        self._end.sendall(_HEADER.pack(len(message)) + message)

    def receive(self, *, max_bytes: int | None = None, timeout_s: float | None = None) -> bytes:
        """Receive one message.

        Raises:
            TimeoutError: the whole message did not come in time.
            EOFError, ConnectionError: the other side is closed.
            MessageTooLong: it has more than `max_bytes`; the channel is of no use after that.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        (size,) = _HEADER.unpack(self._take(_HEADER.size, deadline))
        if max_bytes is not None and size > max_bytes:
            raise MessageTooLong(f"a message of {size} bytes")
        return self._take(size, deadline)

    def is_quiet(self) -> bool:
        """Whether the other side is open and has sent nothing that is not received yet."""
        # `poll`, because a worker's descriptors may be above select's 1024.
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        return not self._buffer and not poll.poll(0)

    def fileno(self) -> int:
        return self._end.fileno()

    def close(self) -> None:
        self._end.close()

    def _take(self, count: int, deadline: float | None) -> bytes:
        while len(self._buffer) < count:
            remaining_s = None if deadline is None else deadline - time.monotonic()
            if remaining_s is not None and remaining_s <= 0:
                raise TimeoutError
            self._end.settimeout(remaining_s)
            chunk = self._end.recv(max(_CHUNK_BYTES, count - len(self._buffer)))
            if not chunk:
                raise EOFError
            self._buffer += chunk
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken
