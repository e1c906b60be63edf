"""Checkpoint folders: which one to go on from, which ones to keep.

A folder `checkpoints/step_000050` is complete only if the file COMMITTED is in it, which is
written last. Anything else is what a killed run left behind.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from rlhf_ray.config.errors import RequestError

_MARKER = "COMMITTED"
_STATE_FILE = "run.json"
_NAME = re.compile(r"step_(\d{6,})")


class Checkpoints:
    """The checkpoints of one output directory.

    Args:
        keep_last: committed checkpoints that `commit` leaves.
    """

    def __init__(self, output_dir: Path, *, keep_last: int) -> None:
        self._root = output_dir / "checkpoints"
        self._keep_last = keep_last

    def begin(self, step: int) -> Path:
        """An empty folder for the checkpoint after `step` steps."""
        folder = self._root / f"step_{step:06d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def commit(self, folder: Path, state: dict[str, Any]) -> None:
        """Write the driver's state and then the marker; remove the oldest checkpoints."""
        _write_synced(folder / _STATE_FILE, json.dumps(state))
        _write_synced(folder / _MARKER, "")
        for old in self._committed()[: -self._keep_last]:
            # The marker first: a kill in between must not leave half a committed one.
            (old / _MARKER).unlink()
            shutil.rmtree(old)

    def resolve(self, resume: str) -> Path | None:
        """The folder that `resume` means: "auto", "never", or a path; None: start anew.

        Raises:
            RequestError: a path that is no committed checkpoint.
        """
        if resume == "never":
            return None
        if resume == "auto":
            committed = self._committed()
            return committed[-1] if committed else None
        folder = Path(resume)
        if not (folder / _MARKER).is_file():
            raise RequestError(
                f"resume={resume} is no committed checkpoint ({folder / _MARKER} is missing): "
                f"give a folder such as {self._root}/step_000050, auto, or never"
            )
        return folder

    def _committed(self) -> list[Path]:
        if not self._root.is_dir():
            return []
        found = [
            path
            for path in self._root.iterdir()
            if _NAME.fullmatch(path.name) and (path / _MARKER).is_file()
        ]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def read_state(folder: Path) -> dict[str, Any]:
    """The driver's state of a committed checkpoint."""
    return json.loads((folder / _STATE_FILE).read_text())


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
