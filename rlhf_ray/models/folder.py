"""Folders that are made once and atomically, by whichever process needs them first."""

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
    """Discard a report."""


def make_once(
    folder: Path,
    make: Callable[[Path], None],
    *,
    recipe: str,
    timeout_s: float,
    report: Report = silent,
) -> None:
    """Make `folder` by calling `make`, unless it is complete already.

    `make` writes into a partial folder, which is renamed when it is complete: a killed process
    leaves no folder that could be mistaken for the result. Other processes wait for the process
    that is making the folder.

    Args:
        recipe: content of the marker file; a folder made by another recipe is made again.
        timeout_s: longest wait for another process; the time of `make` itself is not limited.

    Raises:
        RequestError: `folder` holds files that this function did not make.
        TimeoutError: another process held the lock for `timeout_s`.
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
    """Refuse to replace files that another program put there."""
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
    """Hold the lock file; the system releases it when the process ends for any reason."""
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
                        f"another process has held {path} for {timeout_s:g} s. Find it with "
                        f"`fuser {path}`; wait for it, or end it"
                    ) from None
            if not waiting:
                report(f"waiting for another process that makes {path.parent}")
                waiting = True
            time.sleep(_POLL_S)
        yield
