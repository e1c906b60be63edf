"""Memory shared by the engine and its vLLM workers, without a name in the file system.

It is an anonymous file (`memfd`), for three reasons. It is not limited by the size of /dev/shm,
which is 64 MB in a container. It disappears with the last process that maps it, however that
process ends. And Python's resource tracker, which removes other processes' shared memory when a
worker ends, does not know it. A worker opens it through /proc of the process that made it.
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
        """Path at which another process of the same user opens the segment."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def close(self) -> None:
        """Drop this process's reference; other processes keep the memory until they drop theirs."""
        # The map is freed with the last array that views it.
        del self.array
        os.close(self._descriptor)


def open_segment(path: str, num_bytes: int) -> np.ndarray:
    """Map another process's segment; [num_bytes] uint8, by agreement never written to.

    Raises:
        OSError: the process that made the segment has ended or closed it.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        return np.frombuffer(mmap.mmap(descriptor, num_bytes), dtype=np.uint8)
    finally:
        os.close(descriptor)
