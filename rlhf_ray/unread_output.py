"""Output whose reader may leave, or whose disk may be full: the command goes on without it.

Standard library only, because the command calls this before its other imports.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

LEFT = "the reader of the output has left (a closed pipe); the run goes on, and writes its files"
# A file on a full disk, or above a quota or limit.
_NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def fill_closed_descriptors() -> None:
    """Open the standard descriptors that were closed by whoever started the command.

    The next file that is opened would get such a number, and what is printed would go there.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is this one.
            os.open(os.devnull, os.O_RDWR)


def survive_error_readers() -> None:
    """Let messages on standard error be lost where no one reads it; the status says as much.

    A stream that someone has put in the place of the process's own stays.
    """
    if sys.stderr is not None and sys.stderr is sys.__stderr__:
        sys.stderr = surviving(2, say=lambda _: None, closes=False)


def survive_readers(say: Callable[[str], None]) -> None:
    """Let printing go on where the reader of standard output has left; see above.

    Args:
        say: shows a sentence when that is noticed.
    """
    if sys.stdout is not None and sys.stdout is sys.__stdout__:
        sys.stdout = surviving(1, say=say, closes=False)


def not_written(error: OSError) -> str | None:
    """The words for an output that has no room for what is written; None for any other error.

    Errors of opening have the name of a file, and are not of the output.
    """
    if error.errno not in _NO_ROOM or error.filename is not None:
        return None
    return f"the output cannot be written ({error.strerror})"


def surviving(descriptor: int, *, say: Callable[[str], None], closes: bool) -> TextIO:
    """A text stream on a descriptor that drops what cannot be written, because no one reads it any
    more or its disk is full.

    Args:
        say: shows a sentence when a write finds that, once.
        closes: closing the stream closes the descriptor.
    """
    raw = _Surviving(descriptor, say=say, closes=closes)
    # A line at a time, so that a run's lines come when they are printed; a pipe has no terminal.
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )


class _Surviving(io.FileIO):
    def __init__(self, descriptor: int, *, say: Callable[[str], None], closes: bool) -> None:
        super().__init__(descriptor, "wb", closefd=closes)
        self._say = say
        self._has_said = False

    def write(self, data: Any, /) -> int | None:
        try:
            return super().write(data)
        except BrokenPipeError:
            # Libraries that write to the descriptor itself are quiet from now on, too.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            self._say(LEFT)
            return super().write(data)
        except OSError as error:
            words = not_written(error)
            if words is None:
                raise
            # There may be room again later, so that later lines are tried.
            if not self._has_said:
                self._has_said = True
                self._say(f"{words}; lines are lost, and the run goes on, and writes its files")
            return memoryview(data).nbytes
