"""Checkpoint folders: how one is committed, and which are kept.

A folder `checkpoints/step_000050` is complete only if it holds the file COMMITTED, which is
written last. A folder without that file was left behind by a killed run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_ray.checkpoint_files.manifest import (
    MANIFEST_FILE,
    FileSeal,
    Manifest,
    files_below,
    listed,
    seal_file,
    size_problems,
)
from rlhf_ray.config.errors import RequestError, RunFailed
from rlhf_ray.driver.checkpoint_state import MARKER, STATE_FILE, is_committed, marker_text

_NAME = re.compile(r"step_(\d{6,})")
# How long a shared file system may take to show the driver what a rank on another node wrote.
_VISIBLE_S = 60.0
_MAX_SHOWN = 200


class Checkpoints:
    """The checkpoint folders of one output directory.

    Args:
        keep_last: number of committed checkpoints that `commit` leaves.
    """

    def __init__(self, output_dir: Path, *, keep_last: int) -> None:
        self._root = output_dir / "checkpoints"
        self._keep_last = keep_last

    def begin(self, step: int) -> Path:
        """Make an empty folder for the checkpoint after `step` steps."""
        folder = self._root / f"step_{step:06d}"
        self._remove(folder)
        folder.mkdir(parents=True)
        return folder

    def commit(
        self, folder: Path, state: dict[str, Any], files: Mapping[str, FileSeal] | None = None
    ) -> None:
        """Write the driver's state, the manifest and then the marker; remove old checkpoints.

        What killed runs have left of checkpoints that they never committed is removed, and takes no
        more space. Checkpoints of later steps are removed too: they are of a run that this one has
        replaced, from an earlier step or from the start, and must not be taken for its newest.

        Args:
            files: the files that ranks have sealed; the driver seals the rest.

        Raises:
            RunFailed: a file that a rank wrote is not here.
        """
        files = dict(files or {})
        _wait_until_seen(folder, files)
        _write_synced(folder / STATE_FILE, json.dumps(state))
        for name in files_below(folder):
            if name not in files:
                files[name] = seal_file(folder / name, sync=True)
        manifest = Manifest(files=files).to_text()
        _write_synced(folder / MANIFEST_FILE, manifest)
        _sync_folder(folder)
        _write_synced(folder / MARKER, marker_text(manifest))
        _sync_folder(folder)
        step = step_of(folder)
        older = [path for path in self.committed() if step_of(path) <= step]
        later = [path for path in self.committed() if step_of(path) > step]
        left = [path for path in self.folders() if not is_committed(path)]
        for old in [*left, *later, *older[: -self._keep_last]]:
            self._remove(old)

    def abandon(self, folder: Path) -> None:
        """Remove a folder that was not committed, which frees its space."""
        if not is_committed(folder):
            shutil.rmtree(folder, ignore_errors=True)

    def committed(self) -> list[Path]:
        """The committed checkpoints, the oldest first."""
        return [folder for folder in self.folders() if is_committed(folder)]

    def folders(self) -> list[Path]:
        """All checkpoint folders, the oldest first, also those that are not complete.

        Raises:
            RequestError: the folder of checkpoints cannot be read.
        """
        try:
            if not self._root.is_dir():
                return []
            found = [path for path in self._root.iterdir() if _NAME.fullmatch(path.name)]
        except OSError as error:
            raise RequestError(
                f"the checkpoints in {self._root} cannot be read ({error.strerror or error}): make "
                f"the folder readable, or set another output_dir"
            ) from None
        return sorted(found, key=step_of)

    def resolve(self, resume: str) -> Path | None:
        """The folder that `resume` ("auto", "never" or a path) means; None to start from step 0.

        Raises:
            RequestError: the path is no committed checkpoint.
        """
        if resume == "never":
            return None
        if resume == "auto":
            committed = self.committed()
            return committed[-1] if committed else None
        folder = Path(resume)
        if not is_committed(folder):
            shown = resume if len(resume) <= _MAX_SHOWN else f"{resume[:_MAX_SHOWN]}..."
            raise RequestError(
                f"resume={shown} is no committed checkpoint (its file {MARKER} is missing): "
                f"give a folder such as {self._root}/step_000050, auto, or never"
            )
        return folder

    def _remove(self, folder: Path) -> None:
        # The marker goes first: if the run is killed in between, the rest is not committed.
        (folder / MARKER).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def step_of(folder: Path) -> int:
    """The number of steps after which a checkpoint was written, by its name; -1 without one."""
    found = _NAME.fullmatch(folder.name)
    return int(found[1]) if found else -1


def _wait_until_seen(folder: Path, files: Mapping[str, FileSeal]) -> None:
    """Wait until this process sees the files that ranks wrote on their nodes.

    Raises:
        RunFailed: it does not, because the folder is not shared.
    """
    deadline = time.monotonic() + _VISIBLE_S
    while problems := size_problems(folder, files):
        if time.monotonic() > deadline:
            raise RunFailed(
                f"the ranks wrote {folder}, and the driver does not see all of it after "
                f"{_VISIBLE_S:.0f} s: {listed(problems)}. output_dir must be on a file system "
                f"that all nodes share"
            )
        time.sleep(0.5)


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Put the names of a folder on the disk: a marker must not outlive the files before it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
