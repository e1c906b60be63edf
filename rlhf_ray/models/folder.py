"""Folders that are made once, whole or not at all, whichever process asks first."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_ray.atomic_file import atomic_folder
from rlhf_ray.config.errors import RequestError

MARKER = "COMPLETE"
_POLL_S = 0.2

Report = Callable[[str], None]


def silent(_message: str) -> None:
    """A report that nobody reads."""


def make_once(
    folder: Path,
    make: Callable[[Path], None],
    *,
    recipe: str,
    timeout_s: float,
    report: Report = silent,
) -> None:
    """See that `folder` holds what `make` writes, calling it only when needed.

    `make` writes into a temporary folder beside it, which gets the name `folder` when it is
    complete: a process that is killed leaves nothing that could be taken for the result. Other
    processes wait for the one that is at work.

    Args:
        recipe: goes into the marker file; a folder made by another recipe is made again.
        timeout_s: longest wait for another process; what `make` itself takes is its own matter.

    Raises:
        RequestError: `folder` holds something that this function did not make.
        TimeoutError: another process holds the lock all the time.
    """
    if _is_complete(folder, recipe):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / f".{folder.name}.lock", timeout_s, report):
        if _is_complete(folder, recipe):
            return
        _refuse_foreign(folder)
        with atomic_folder(folder) as partial:
            partial.mkdir()
            make(partial)
            (partial / MARKER).write_text(recipe + "\n")


def _is_complete(folder: Path, recipe: str) -> bool:
    marker = folder / MARKER
    return marker.is_file() and marker.read_text().strip() == recipe


def _refuse_foreign(folder: Path) -> None:
    """Never replace what somebody else put there."""
    if not folder.exists():
        return
    is_ours = folder.is_dir() and ((folder / MARKER).is_file() or not any(folder.iterdir()))
    if not is_ours:
        raise RequestError(
            f"{folder} exists and was not made by this command (it has no file {MARKER}). "
            "Choose another folder, or remove it"
        )


@contextmanager
def _locked(path: Path, timeout_s: float, report: Report) -> Iterator[None]:
    """Hold the lock file; the system lets go of it when the process ends, however it ends."""
    deadline = time.monotonic() + timeout_s
    with path.open("w") as lock:
        waiting = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"another process has held {path} for {timeout_s:g} s. See what it is "
                        f"doing (`fuser {path}`), or end it"
                    ) from None
            if not waiting:
                report(f"waiting for another process that makes {path.parent}")
                waiting = True
            time.sleep(_POLL_S)
        yield
