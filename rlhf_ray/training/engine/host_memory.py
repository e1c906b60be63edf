"""Freed memory of a process that trains on a CPU."""

from __future__ import annotations

import ctypes
import platform

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER, _NONE = -1, 0


def keep_freed_memory() -> None:
    """Let this process reuse freed memory instead of returning it to the system.

    Every micro-batch frees its activations and gradients and allocates them again. glibc maps
    each large tensor separately and unmaps it when it is freed. The system then zeroes every page
    at its next use: about 600,000 page faults and 4.5 of 20 seconds in an update of SmolLM2-135M
    (docs/benchmarks.md). The price: the process never shrinks. Does nothing with a C library other
    than glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    assert libc.mallopt(_M_MMAP_MAX, _NONE) == 1, "mallopt refused M_MMAP_MAX"
    assert libc.mallopt(_M_TRIM_THRESHOLD, _NEVER) == 1, "mallopt refused M_TRIM_THRESHOLD"
