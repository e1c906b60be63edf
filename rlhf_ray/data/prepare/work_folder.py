"""Atomic output folder of the stage, with a lock against a second run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_ray.atomic_file import partial_path
from rlhf_ray.config.errors import RequestError
from rlhf_ray.data.rows import known_names
from rlhf_ray.data.sources.prepared import REPORT
from rlhf_ray.run_folder.lock import LOCK, folder_lock
from rlhf_ray.run_folder.place import fixed_place

_LOCK = "lock"
# Files that a failed run leaves in its output folder.
_LEFT_BY_FAILURES = {"error.log", LOCK}


def check_output(output: Path) -> None:
    """Refuse a folder that holds anything but an earlier result of this stage.

    Raises:
        RequestError: the folder holds other files, or is a file.
    """
    if output.exists() and not output.is_dir():
        raise RequestError(f"output_dir is {str(output)!r}, a file; name a folder")
    if fixed := fixed_place(output):
        raise RequestError(
            f"output_dir is {str(output)!r}, {fixed}; stage=prepare_data replaces its folder as a "
            f"whole, which it cannot be: name a folder in it"
        )
    names = {child.name for child in output.iterdir()} if output.is_dir() else set()
    others = names - _LEFT_BY_FAILURES
    if others and REPORT not in names:
        raise RequestError(
            f"output_dir is {str(output)!r}, which has other files and no {REPORT} of an earlier "
            f"stage=prepare_data; name an empty or new folder. {known_names('', others)}"
        )


@contextmanager
def work_folder(output: Path) -> Iterator[Path]:
    """Give a folder to write the result into; it becomes `output` if the block ends well.

    An earlier result is replaced as a whole, at the end. The partial result of an interrupted run
    is deleted, and the stage starts from the beginning.

    `atomic_folder` does less: it neither locks nor keeps the earlier result until the rename.

    Raises:
        RequestError: another run is writing the same result.
    """
    work = partial_path(output)
    previous = output.with_name(output.name + ".previous")
    work.mkdir(parents=True, exist_ok=True)
    with folder_lock(work / _LOCK, folder=output) as lock:
        lock.write("prepare_data")
        _recover(output, previous)
        _empty(work)
        try:
            yield work
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        lock.remove()
        if output.exists():
            output.rename(previous)
        work.rename(output)
    shutil.rmtree(previous, ignore_errors=True)


def _recover(output: Path, previous: Path) -> None:
    """Put back the earlier result if a run was killed between the two renames."""
    if previous.exists() and not output.exists():
        previous.rename(output)
    shutil.rmtree(previous, ignore_errors=True)


def _empty(folder: Path) -> None:
    for child in folder.iterdir():
        if child.is_dir():
            shutil.rmtree(child)
        elif child.name != _LOCK:
            child.unlink()
