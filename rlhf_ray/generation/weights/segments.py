"""Memory that engine and vLLM workers share, without a name in the file system.

An anonymous file (`memfd`) has what this needs: it is not bound by the size of /dev/shm, which
is 64 MB in a container; it is gone when the last process that maps it is gone, however that
ended; and Python's resource tracker, which removes other processes' shared memory when a worker
ends, does not know it. A worker opens it through /proc of the process that made it.
"""

from __future__ import annotations

import mmap
import os

import numpy as np


class SharedSegment:
    """A writable segment in the process that made it. Linux only."""

    def __init__(self, num_bytes: int) -> None:
        self._descriptor = os.memfd_create("rlhf_ray_weights", os.MFD_CLOEXEC)
        os.ftruncate(self._descriptor, num_bytes)
        self._map = mmap.mmap(self._descriptor, num_bytes)
        self.array = np.frombuffer(self._map, dtype=np.uint8)

    @property
    def num_bytes(self) -> int:
        return self.array.shape[0]

    @property
    def path(self) -> str:
        """Where another process of the same user opens the segment."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def close(self) -> None:
        """Let go of the memory; processes that have opened it keep it until they do."""
        # The map itself goes with the last array that views it.
        del self.array
        os.close(self._descriptor)


def open_segment(path: str, num_bytes: int) -> np.ndarray:
    """Map another process's segment; [num_bytes] uint8, read-only by agreement.

    Raises:
        OSError: the process that made it has ended or let go of it.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        return np.frombuffer(mmap.mmap(descriptor, num_bytes), dtype=np.uint8)
    finally:
        os.close(descriptor)
