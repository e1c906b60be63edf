"""The lock of an output folder: one run writes it at a time.

The lock is one of the operating system (`flock`) on the file `.lock`, which ends with the process
however it ends: a killed run leaves no stale lock. On NFS it holds between hosts where the server
has a lock service. The text of the file is for messages only.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_ray.config.errors import RequestError

LOCK = ".lock"
_TAKEN = frozenset({errno.EWOULDBLOCK, errno.EACCES})
# File systems without locks: some FUSE ones, Lustre without `-o flock`, NFS without lock service.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})


class FolderLock:
    """A lock that is held.

    Attributes:
        problem: why the file system could not lock, and the run goes on without; None if it did.
    """

    def __init__(self, path: Path, descriptor: int, problem: str | None) -> None:
        self.problem = problem
        self._path = path
        self._descriptor = descriptor

    def read(self) -> str | None:
        """The stage of the run that wrote the file last; None in a new file."""
        return _holder(os.pread(self._descriptor, 4096, 0)).get("stage")

    def write(self, stage: str) -> None:
        """Say who holds the lock."""
        now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        holder = {"stage": stage, "host": socket.gethostname(), "pid": os.getpid(), "since": now}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, (json.dumps(holder) + "\n").encode(), 0)

    def is_there(self) -> bool:
        """Whether the folder still has the file; not if the folder was deleted or replaced."""
        return _is_same(self._path, self._descriptor)

    def remove(self) -> None:
        """Remove the file while the lock is held, where the run has left nothing else."""
        self._path.unlink(missing_ok=True)


@contextmanager
def folder_lock(path: Path, *, folder: Path) -> Iterator[FolderLock]:
    """Hold the lock in the file `path` while the block runs.

    Args:
        folder: the output folder, for messages.

    Raises:
        RequestError: another run holds it; says which.
    """
    descriptor, problem = _acquire(path, folder)
    try:
        yield FolderLock(path, descriptor, problem)
    finally:
        os.close(descriptor)


def _acquire(path: Path, folder: Path) -> tuple[int, str | None]:
    while True:
        # Not inherited by other programs, which could outlive the run.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(os.pread(descriptor, 4096, 0))
            if error.errno in _NO_LOCKS:
                return descriptor, f"{error.strerror} ({folder})"
            os.close(descriptor)
            if error.errno not in _TAKEN:
                raise
            raise RequestError(_taken(folder, holder)) from error
        # Whoever held it before may have removed the file between the two calls.
        if _is_same(path, descriptor):
            return descriptor, None
        os.close(descriptor)


def _taken(folder: Path, holder: dict[str, str]) -> str:
    who = ""
    if holder:
        who = (
            f": stage={holder.get('stage')}, process {holder.get('pid')} on "
            f"{holder.get('host')}, since {holder.get('since')}"
        )
    return (
        f"output_dir is {str(folder)!r}, and another run is writing there{who}; wait for it, end "
        f"it, or name another output_dir"
    )


def _is_same(path: Path, descriptor: int) -> bool:
    try:
        there = path.stat()
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def _holder(text: bytes) -> dict[str, str]:
    try:
        holder = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return {str(k): str(v) for k, v in holder.items()} if isinstance(holder, dict) else {}
