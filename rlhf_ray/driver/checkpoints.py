"""Checkpoint folders, and when and how roles are saved to them.

A folder `checkpoints/step_000050` is complete only if it holds the file COMMITTED, which is
written last. A folder without that file was left behind by a killed run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.config.earlier_release import earlier_key
from rlhf_ray.config.errors import RequestError

if TYPE_CHECKING:
    # It imports torch, which finding a checkpoint does not need.
    from rlhf_ray.driver.roles import Checkpointed

_MARKER = "COMMITTED"
_STATE_FILE = "run.json"
_NAME = re.compile(r"step_(\d{6,})")


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
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def commit(self, folder: Path, state: dict[str, Any]) -> None:
        """Write the driver's state and then the marker; remove the oldest checkpoints."""
        _write_synced(folder / _STATE_FILE, json.dumps(state))
        _write_synced(folder / _MARKER, "")
        for old in self._committed()[: -self._keep_last]:
            # The marker goes first: if the run is killed in between, the rest is not committed.
            (old / _MARKER).unlink()
            shutil.rmtree(old)

    def resolve(self, resume: str) -> Path | None:
        """The folder that `resume` ("auto", "never" or a path) means; None to start from step 0.

        Raises:
            RequestError: the path is no committed checkpoint.
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


class StepCheckpoints:
    """Checkpoints of roles and driver after every `every_steps` steps.

    Args:
        roles: roles by the name of their folder in a checkpoint.
        every_steps: steps between two checkpoints; 0 writes none.
        timeout_s: deadline of saving or loading all roles.
        identity: settings that a resumed run must share with the run that was saved.
    """

    def __init__(
        self,
        folders: Checkpoints,
        *,
        roles: Mapping[str, Checkpointed],
        waiter: CallWaiter,
        every_steps: int,
        timeout_s: float,
        identity: dict[str, Any],
    ) -> None:
        self._folders = folders
        self._roles = roles
        self._waiter = waiter
        self._every_steps = every_steps
        self._timeout_s = timeout_s
        self._identity = identity

    def is_due(self, step: int) -> bool:
        """Whether to write a checkpoint after `step` steps."""
        return self._every_steps > 0 and step % self._every_steps == 0

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write all roles, then the driver's `state` (plain values), then the marker.

        Raises:
            RunFailed: a worker failed or was late.
        """
        folder = self._folders.begin(step)
        roles = self._roles.items()
        self._wait([call for name, role in roles for call in role.save_checkpoint(folder / name)])
        self._folders.commit(folder, {"step": step, "identity": self._identity, **state})

    def read(self, folder: Path) -> dict[str, Any]:
        """The driver's state of a checkpoint, with its `step`.

        Raises:
            RequestError: the checkpoint belongs to a run with other settings.
        """
        saved = read_state(folder)
        check_identity(folder, saved["identity"], self._identity)
        return saved

    def load_roles(self, folder: Path) -> None:
        """Put all roles where the checkpoint left them.

        Raises:
            RunFailed: a worker failed or was late.
        """
        roles = self._roles.items()
        self._wait([call for name, role in roles for call in role.load_checkpoint(folder / name)])

    def _wait(self, calls: Sequence[Call]) -> None:
        self._waiter.results(calls, phase="checkpoint", timeout_s=self._timeout_s)


def read_state(folder: Path) -> dict[str, Any]:
    """The driver's state of a committed checkpoint."""
    return json.loads((folder / _STATE_FILE).read_text())


def checkpoint_to_resume(output: Path, resume: str, identity: dict[str, Any]) -> Path | None:
    """The checkpoint folder from which a run goes on; None to start from step 0.

    Raises:
        RequestError: there is no such checkpoint, or it belongs to a run with other settings.
    """
    folder = Checkpoints(output, keep_last=1).resolve(resume)
    if folder:
        check_identity(folder, read_state(folder)["identity"], identity)
    return folder


def check_identity(folder: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse to go on from the checkpoint of a run with other settings.

    Raises:
        RequestError: names every setting that differs.
    """
    # A checkpoint of an earlier release has the old name of a key that was renamed.
    saved = {name: there.get(name, there.get(earlier_key(name))) for name in here}
    differing = [
        f"{name}={saved[name]!r} there, {value!r} here"
        for name, value in here.items()
        if saved[name] != value
    ]
    if differing:
        raise RequestError(
            f"the checkpoint {folder} is of another run: {'; '.join(differing)}. Use its "
            f"settings, another output_dir, or resume=never to start from step 0"
        )


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
