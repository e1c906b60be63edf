"""Full disks, said in words: which disk, and how much is free.

Python says `[Errno 28] No space left on device` without a path, safetensors says it within a
sentence about serialising, and torch says that a position in a file is not the expected one.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_ray.config.errors import RunFailed

# A run that begins with less is refused: logs and metrics alone need more.
SMALLEST_FREE_BYTES = 16 * 1024 * 1024
_SHARED_MEMORY = Path("/dev/shm")  # Ray's objects.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_WORDS_OF_FULL = ("No space left on device", "Disk quota exceeded")
# torch's writer of checkpoints after a short write: "[enforce fail at inline_container.cc:672] .
# unexpected pos 4777344 vs 4777236" or "PytorchStreamWriter failed writing file data/0".
_WORDS_OF_TORCH = ("inline_container", "PytorchStreamWriter failed writing")


class DiskFull(RunFailed):
    """A disk is full; the message says which."""


def space_of(path: Path) -> str:
    """The disk of a path and its free space, in words."""
    there = existing(path)
    try:
        usage = shutil.disk_usage(there)
    except OSError as error:
        return f"the disk of {path} ({error.strerror})"
    free, total = (bytes_in_words(number) for number in (usage.free, usage.total))
    return f"the disk of {path} ({free} of {total} free, mounted at {_mount(there)})"


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write on the disk of a path that may not exist yet."""
    return shutil.disk_usage(existing(path)).free


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def is_full(error: BaseException) -> bool:
    """Whether an error says for sure that a disk or a quota is full."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(words in str(error) for words in _WORDS_OF_FULL)


def full_disk(error: BaseException, path: Path) -> str | None:
    """The sentence for an error that a full disk has caused while `path` was written, or None.

    torch's own words do not say why its file is short: those are believed if little is free.
    """
    candidates = (path, Path(tempfile.gettempdir()), _SHARED_MEMORY)
    name = error.filename if isinstance(error, OSError) else None
    if isinstance(name, str | bytes):
        candidates = (Path(os.fsdecode(name)),)
    full = [place for place in candidates if free_bytes(place) < SMALLEST_FREE_BYTES]
    is_torch = any(words in str(error) for words in _WORDS_OF_TORCH)
    if not (is_full(error) or (is_torch and full)):
        return None
    way_out = "free some space and give the same command again"
    if full:
        return f"{space_of(full[0])} is full: {way_out}"
    # A quota, or what was half written has been removed since.
    spaces = " and ".join(space_of(place) for place in candidates[:2])
    return f"a disk or a quota is full; there are {spaces}: {way_out}"


@contextmanager
def full_disk_said(path: Path) -> Iterator[None]:
    """Name the disk if it fills up while the block writes to `path`.

    Raises:
        DiskFull: in place of the error that says less.
    """
    try:
        yield
    except RunFailed:
        raise  # It has its own words.
    except (OSError, RuntimeError, ValueError) as error:
        sentence = full_disk(error, path)
        if sentence is None:
            raise
        raise DiskFull(f"cannot write {path}: {sentence}") from error


def _mount(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if os.path.ismount(place))


def bytes_in_words(number: int) -> str:
    """A number of bytes with three digits and its unit, such as 1.23 GB."""
    size = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
