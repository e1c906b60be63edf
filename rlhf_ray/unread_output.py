"""Output whose reader may leave, as in `... | head -1`: the command goes on without it.

Standard library only, because the command calls this before its other imports.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

LEFT = "the reader of the output has left (a closed pipe); the run goes on, and writes its files"


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
        sys.stderr = surviving(2, left=lambda: None, closes=False)


def survive_readers(say: Callable[[str], None]) -> None:
    """Let printing go on where the reader of standard output has left; see above.

    Args:
        say: shows a sentence when that is noticed.
    """
    if sys.stdout is not None and sys.stdout is sys.__stdout__:
        sys.stdout = surviving(1, left=lambda: say(LEFT), closes=False)


def surviving(descriptor: int, *, left: Callable[[], None], closes: bool) -> TextIO:
    """A text stream on a descriptor that drops what no one reads any more.

    Args:
        left: called when a write finds the reader gone, once.
        closes: closing the stream closes the descriptor.
    """
    raw = _Surviving(descriptor, left=left, closes=closes)
    # A line at a time, so that a run's lines come when they are printed; a pipe has no terminal.
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )


class _Surviving(io.FileIO):
    def __init__(self, descriptor: int, *, left: Callable[[], None], closes: bool) -> None:
        super().__init__(descriptor, "wb", closefd=closes)
        self._left = left

    def write(self, data: Any, /) -> int | None:
        try:
            return super().write(data)
        except BrokenPipeError:
            # Libraries that write to the descriptor itself are quiet from now on, too.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            self._left()
            return super().write(data)
