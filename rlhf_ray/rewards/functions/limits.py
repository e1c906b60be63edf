"""Limits of the processes that run reward functions.

The kernel holds those of one process (`setrlimit`); the keeper watches those of all together.
RLIMIT_NPROC is not used: it counts all processes of the user on the machine, Ray's among them, and
does not bind root.
"""

from __future__ import annotations

import errno
import resource
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_ray.rewards.functions.family import private_bytes

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class FunctionLimits:
    """Limits; None where there is none.

    Attributes:
        memory_gib: of each process, and of all together.
        processes: at once.
        open_files: of each process.
        file_gib: of each file that is written.
    """

    memory_gib: float | None
    processes: int | None
    open_files: int | None
    file_gib: float | None

    def apply(self) -> None:
        """Set the limits of this process, which everything that it starts inherits."""
        _lower(resource.RLIMIT_CORE, 0)
        if self.memory_gib is not None:
            # Data and not address space: CUDA and allocators reserve more space than they use.
            _lower(resource.RLIMIT_DATA, int(self.memory_gib * GIB))
        if self.open_files is not None:
            _lower(resource.RLIMIT_NOFILE, self.open_files)
        if self.file_gib is not None:
            _lower(resource.RLIMIT_FSIZE, int(self.file_gib * GIB))

    def broken_by(self, pids: Sequence[int]) -> str | None:
        """The limit that these processes exceed together, as a sentence; None if they do not."""
        if self.processes is not None and len(pids) > self.processes:
            return f"it had more processes at once than reward.max_processes, {self.processes}"
        # The kernel's limit is enough for one process.
        if self.memory_gib is None or len(pids) < 2:
            return None
        used_gib = private_bytes(pids) / GIB
        if used_gib <= self.memory_gib:
            return None
        return (
            f"its {len(pids)} processes used {used_gib:.3g} GiB, and reward.max_memory_gib is "
            f"{self.memory_gib:g}"
        )

    def reached_by(self, error: BaseException) -> str | None:
        """The limit behind an error of a function, in words; None for any other error."""
        if isinstance(error, MemoryError) and self.memory_gib is not None:
            return f"reward.max_memory_gib is {self.memory_gib:g}"
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.ENOMEM and self.memory_gib is not None:
            return f"reward.max_memory_gib is {self.memory_gib:g}"
        if number == errno.EMFILE and self.open_files is not None:
            return f"reward.max_open_files is {self.open_files}"
        if number == errno.EFBIG and self.file_gib is not None:
            return f"reward.max_file_gib is {self.file_gib:g}"
        return None


def _lower(kind: int, limit: int) -> None:
    """Set a limit, soft and hard, unless a lower one holds already."""
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(kind, (limit, limit))
