"""What a process that trains on a CPU does with memory that it has freed."""

from __future__ import annotations

import ctypes
import platform

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER, _NONE = -1, 0


def keep_freed_memory() -> None:
    """Let this process use freed memory again instead of giving it back to the system.

    Activations and gradients are freed and allocated anew in every micro-batch. glibc maps each
    large tensor by itself and unmaps it when it is freed, so that every page of it is zeroed by
    the system at its next use: about 600,000 page faults and 4.5 of 20 seconds in an update of
    SmolLM2-135M (docs/benchmarks.md). The process keeps its largest size in return. Other C
    libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    assert libc.mallopt(_M_MMAP_MAX, _NONE) == 1, "mallopt refused M_MMAP_MAX"
    assert libc.mallopt(_M_TRIM_THRESHOLD, _NEVER) == 1, "mallopt refused M_TRIM_THRESHOLD"
