"""Atomic writes: whoever reads, or resumes after a kill, finds the old content or the new one.

The new content is written to NAME.partial in the same folder and renamed at the end. A block that
raises removes the partial content; a killed process leaves it, and the next write replaces it. A
disk that fills up is named (`DiskFull`).
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rlhf_ray.disk_space import full_disk_said


def write_atomically(path: Path, text: str) -> None:
    """Write a whole text file; see `atomic_file` for its encoding."""
    with atomic_file(path) as file:
        file.write(text)


@contextmanager
def atomic_file(path: Path) -> Iterator[TextIO]:
    """Open a text file in UTF-8 that becomes `path` when the block ends without an error.

    A lone surrogate, which UTF-8 cannot encode, becomes its escape, which JSON reads back.
    """
    partial = partial_path(path)
    try:
        with (
            full_disk_said(path),
            partial.open("w", encoding="utf-8", errors="backslashreplace") as file,
        ):
            yield file
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give the block a path to make a folder at; it becomes `folder` when the block ends well.

    The path does not exist yet, its parent does. An earlier `folder` is removed before the rename:
    a kill between the two leaves the complete new folder under its partial name.
    """
    partial = partial_path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with full_disk_said(folder):
            yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    follow_umask(partial)
    # From here on the new folder is complete: an error must not remove it.
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def follow_umask(folder: Path) -> None:
    """Give the files of a folder the mode that a file has that is simply opened.

    safetensors writes to a temporary file, which only its owner may read, and renames it: a model
    in a shared folder could be read by no one else. Files of other owners stay as they are.
    """
    wanted = 0o666 & ~_umask()
    for file in folder.rglob("*"):
        facts = file.lstat()
        is_private = stat.S_ISREG(facts.st_mode) and stat.S_IMODE(facts.st_mode) == 0o600
        if is_private and facts.st_uid == os.geteuid():
            file.chmod(wanted)


def _umask() -> int:
    """The mask of the process, read without setting it, which other threads would see."""
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    for line in status.splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o077


def partial_path(path: Path) -> Path:
    """The place next to `path` where its new content is written."""
    return path.with_name(f"{path.name}.partial")
