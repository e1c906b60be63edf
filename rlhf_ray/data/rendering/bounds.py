"""Bounds of time and memory for one chat that a template renders.

A template is a program. It is tried on small chats before a run (`models.checks.template_trial`),
and may explode for certain rows all the same: loops without end, `'a' * 10000000000`. The bounds
hold in the main thread, where all rows of a run are rendered, and cost 26 microseconds of each.
A single operation of Python that computes for ever (`10 ** 10 ** 10`) is not interrupted.
"""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Of computing, so that a busy machine changes nothing. A chat takes less than a millisecond.
CPU_S = 10.0
# Rows have up to 128 MiB, and a text of them is in memory in several forms while it is made.
MEMORY_BYTES = 2**32


class TookTooMuch(Exception):  # noqa: N818 - it reads as a sentence where it is raised
    """A template has exceeded a bound; the message ends a sentence about it."""


@contextmanager
def bounded() -> Iterator[None]:
    """Interrupt the block when it computes for too long, or takes too much memory.

    Raises:
        TookTooMuch: it did.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Signals reach the main thread alone, and limits hold for all.
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGVTALRM, _interrupt)
    try:
        _limit_memory(_mapped_bytes() + MEMORY_BYTES, soft, hard)
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S)
        yield
    except MemoryError as error:
        raise TookTooMuch(
            f"takes more than {MEMORY_BYTES / 2**30:g} GiB of memory for this row"
        ) from error
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise TookTooMuch(f"did not render this row within {CPU_S:g} s of computing")


def _limit_memory(wanted: int, soft: int, hard: int) -> None:
    """Lower the limit of addresses; one that is lower stays."""
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([wanted, *known]), hard))


def _mapped_bytes() -> int:
    with open("/proc/self/statm", "rb", buffering=0) as file:
        return int(file.read().split()[0]) * resource.getpagesize()
