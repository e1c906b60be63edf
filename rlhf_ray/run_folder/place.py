"""The check that a run can write its output folder, before anything starts."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from rlhf_ray.config.errors import RequestError
from rlhf_ray.disk_space import SMALLEST_FREE_BYTES, free_bytes, is_full, space_of

_PROBE_BYTES = 64 * 1024
# Entries of an output folder that runs write, by their form.
FOLDERS = (
    "adapter",
    "best",
    "checkpoints",
    "earlier",
    "evaluation",
    "logs",
    "model",
    "model_ema",
    "rollouts",
    "tensorboard",
)
FILES = (
    "best.json",
    "comparison.html",
    "compression.json",
    "config.yaml",
    "end.json",
    "error.log",
    "evaluation.json",
    "events.jsonl",
    "finished.json",
    "metrics.jsonl",
    "progress.json",
    "report.html",
    "samples.jsonl",
    "serve.json",
    "spans.jsonl",
    "startup.json",
    "summary.json",
    "summary.txt",
    "table.md",
    "trace.json.gz",
)
# Of these, what is replaced as a whole, by a rename. A folder of checkpoints may be a link.
_REPLACED = ("adapter", "model", "model_ema")
_FORMS = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def prepare_place(folder: Path, *, key: str = "output_dir") -> tuple[Path, ...]:
    """Make the folder, and find out that a run can write there.

    Returns:
        The folders that were made, the outermost first.

    Raises:
        RequestError: says what is in the way, and the way out. No folder is left then.
    """
    said = f"{key} is {str(folder)!r}"
    try:
        missing = _missing(folder, said)
        made = _made(missing, said)
    except OSError as error:
        raise RequestError(f"{said}: {_reason(error, folder)}") from error
    try:
        _write_something(folder)
        if free_bytes(folder) < SMALLEST_FREE_BYTES:
            raise RequestError(
                f"{said}: {space_of(folder)} has too little space for any run; free some, or name "
                f"a folder on another disk"
            )
        _check_entries(folder, said)
    except OSError as error:
        remove_made(made)
        raise RequestError(f"{said}: {_reason(error, folder)}") from error
    except RequestError:
        remove_made(made)
        raise
    return made


def check_form(folder: Path, *, key: str = "output_dir") -> None:
    """Refuse a path that cannot become a folder, without making it.

    Raises:
        RequestError: the path or a part of it is something else than a folder.
    """
    try:
        _missing(folder, f"{key} is {str(folder)!r}")
    except OSError:
        return  # The run may be on another machine, or by another user.


def remove_made(made: tuple[Path, ...]) -> None:
    """Remove the folders that were made, as far as they are empty."""
    for folder in reversed(made):
        try:
            folder.rmdir()
        except OSError:
            return  # Something was written to it, by whoever it was.


def _missing(folder: Path, said: str) -> list[Path]:
    """The folders that have to be made, the outermost first.

    Raises:
        RequestError: the path or a part of it is something else than a folder.
    """
    missing: list[Path] = []
    for place in (folder, *folder.parents):
        try:
            mode = place.stat().st_mode
        except FileNotFoundError:
            if place.is_symlink():
                raise RequestError(
                    f"{said}: {_here(place, folder)} is a symbolic link to {os.readlink(place)!r}, "
                    f"which does not exist; make that folder, or name another one"
                ) from None
            missing.append(place)
            continue
        except NotADirectoryError:
            missing.append(place)  # A part further up is a file, and is named there.
            continue
        if not stat.S_ISDIR(mode):
            form = next((words for holds, words in _FORMS if holds(mode)), "no folder")
            raise RequestError(f"{said}: {_here(place, folder)} is {form}; name a folder")
        break
    return missing[::-1]


def _here(place: Path, folder: Path) -> str:
    return "it" if place == folder else str(place)


def _made(missing: list[Path], said: str) -> tuple[Path, ...]:
    made: list[Path] = []
    for folder in missing:
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            remove_made(tuple(made))
            raise RequestError(f"{said}: {_reason(error, folder)}") from error
        made.append(folder)
    return tuple(made)


def _write_something(folder: Path) -> None:
    """Write and remove a file: permissions and free space alone do not tell."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(b"\0" * _PROBE_BYTES)
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


def _check_entries(folder: Path, said: str) -> None:
    """Refuse what stands where the run would write, and would stop it after minutes.

    Raises:
        RequestError: names the entry.
    """
    for name in (*FOLDERS, *FILES):
        entry, wants_folder = folder / name, name in FOLDERS
        if entry.is_symlink() and not entry.exists():
            problem = f"a symbolic link to {os.readlink(entry)!r}, which does not exist"
        elif not entry.exists():
            continue
        elif name in _REPLACED and (fixed := fixed_place(entry)):
            problem = f"{fixed}, which cannot be replaced by a new folder"
        elif wants_folder and not entry.is_dir():
            problem = "not a folder"
        elif not wants_folder and not entry.is_file():
            problem = "not a file"
        elif not os.access(entry, os.W_OK):
            problem = "not writable"
        else:
            continue
        raise RequestError(
            f"{said}: {name} in it is {problem}, and the run writes there; move it away, or name "
            f"another output_dir"
        )


def fixed_place(folder: Path) -> str | None:
    """The form of a folder that a rename cannot replace, or would turn into another one."""
    if folder.is_symlink():
        return f"a symbolic link to {os.readlink(folder)!r}"
    return "a mount point" if os.path.ismount(folder) else None


def _reason(error: OSError, folder: Path) -> str:
    """The error in words, with the way out."""
    if is_full(error):
        return f"{space_of(folder)} is full, or your quota of it; free some space"
    words = {
        errno.ELOOP: "its symbolic links lead in a circle",
        errno.ENAMETOOLONG: "the path, or a name in it, is longer than the file system allows",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: f"{_of(error, folder)} may not be written by this user",
        errno.EPERM: f"{_of(error, folder)} may not be written by this user",
    }
    reason = words.get(error.errno or 0, f"cannot be written: {error.strerror}")
    return f"{reason}; name a folder that you can write"


def _of(error: OSError, folder: Path) -> str:
    return os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(folder)
