"""Private temporary folders that do not outlive their process for long.

A process that is killed cannot remove its folder. Every folder has a file that its process holds
locked, and the system lifts the lock when the process ends, however that happens. So the next one
that needs a folder finds those without an owner, and removes them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "rlhf_ray_"
_LOCK = "owner.lock"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A private temporary folder. The path is short: Unix sockets allow 107 bytes."""
    _remove_abandoned(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = _lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _lock(folder: Path) -> int:
    """Lock a folder for this process; returns the open file that holds the lock."""
    # It gets its name when it is locked: under its name it is never seen without the lock.
    new = folder / f"{_LOCK}.new"
    file = os.open(new, os.O_CREAT | os.O_RDWR, 0o600)
    # A file system without locks keeps the folders of killed processes, as `_remove_abandoned`
    # cannot lock them either.
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
    new.rename(folder / _LOCK)
    return file


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        # Others may remove it at the same time, and foreign ones may not be looked into.
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            file = os.open(folder / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(file)
