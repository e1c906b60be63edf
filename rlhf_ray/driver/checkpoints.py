"""Checkpoints of roles and driver: when they are written, verified and loaded."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.checkpoint_files.manifest import FileSeal, hash_problems, listed, size_problems
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.driver.checkpoint_folders import Checkpoints
from rlhf_ray.driver.checkpoint_state import damaged, is_committed, read_manifest, read_state
from rlhf_ray.driver.resume_changes import check_identity
from rlhf_ray.losses import MemberLost

if TYPE_CHECKING:
    # It imports torch, which finding a checkpoint does not need.
    from rlhf_ray.driver.roles import Checkpointed

__all__ = ["Checkpoints", "StepCheckpoints"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Writing:
    """A checkpoint that the ranks write while the run goes on.

    Attributes:
        content: the driver's state, of the moment of the checkpoint.
        ends_at: of `time.monotonic`; the ranks must have written by then.
    """

    folder: Path
    content: dict[str, Any]
    ends_at: float


class StepCheckpoints:
    """Checkpoints of roles and driver after every `every_steps` steps.

    In the background the roles copy their states, and `save` returns. The checkpoint is committed
    by a later `poll`, by the next `save` or by `finish`. Until then the former one is the newest.

    Args:
        roles: roles by the name of their folder in a checkpoint.
        every_steps: steps between two checkpoints; 0 writes none.
        timeout_s: deadline of saving, sealing or loading all roles.
        identity: settings that a resumed run must share with the run that was saved.
        settings: further keys of the state, about the settings of the run.
        in_background: train on while the ranks write.
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
        settings: Mapping[str, Any] | None = None,
        in_background: bool = False,
    ) -> None:
        self._folders = folders
        self._roles = roles
        self._waiter = waiter
        self._every_steps = every_steps
        self._timeout_s = timeout_s
        self._identity = identity
        self._settings = dict(settings or {})
        self._in_background = in_background
        self._writing: _Writing | None = None
        self._newest: tuple[int, Path] | None = None

    @property
    def newest(self) -> tuple[int, Path] | None:
        """Step and folder of the newest checkpoint that this process has committed or loaded."""
        return self._newest

    def is_due(self, step: int) -> bool:
        """Whether to write a checkpoint after `step` steps."""
        return self._every_steps > 0 and step % self._every_steps == 0

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write all roles, then the driver's `state` (plain values), then the marker.

        In the background the former checkpoint is committed first.

        Raises:
            RunFailed: a worker failed or was late, or the driver could not write. The folder was
                removed; earlier checkpoints are as they were.
        """
        self.finish()
        folder = self._folders.begin(step)
        content = {"step": step, "identity": self._identity, **self._settings, **state}
        with self._abandoning(folder):
            if self._in_background:
                self._begin(folder, content)
                return
            roles = self._roles.items()
            self._wait([c for name, role in roles for c in role.save_checkpoint(folder / name)])
            self._commit(folder, content, self._sealed(folder, sync=True))

    def give_up_writing(self) -> None:
        """Give up the checkpoint in the background: the ranks that wrote it are gone."""
        if self._writing is not None:
            self._folders.abandon(self._writing.folder)
            self._writing = None

    def poll(self) -> None:
        """Commit the checkpoint in the background if all ranks have written; does not wait.

        Raises:
            RunFailed: as of `save`.
        """
        if self._writing is not None:
            self._commit_written(self._writing, wait_s=0.0)

    def finish(self) -> None:
        """Wait for the checkpoint in the background, and commit it.

        Raises:
            RunFailed: as of `save`.
        """
        if self._writing is not None:
            left_s = max(0.0, self._writing.ends_at - time.monotonic())
            self._commit_written(self._writing, wait_s=left_s)

    def _begin(self, folder: Path, content: dict[str, Any]) -> None:
        roles = self._roles.items()
        ends_at = time.monotonic() + self._timeout_s
        self._wait([c for name, role in roles for c in role.begin_checkpoint(folder / name)])
        # The run goes on to change what it was given: a copy, as it reads back.
        content = json.loads(json.dumps(content))
        self._writing = _Writing(folder=folder, content=content, ends_at=ends_at)

    def _commit_written(self, writing: _Writing, *, wait_s: float) -> None:
        with self._abandoning(writing.folder):
            self._writing = None
            seals = self._gathered(
                {
                    name: role.written_checkpoint(wait_s=wait_s)
                    for name, role in self._roles.items()
                },
                timeout_s=wait_s + self._timeout_s,
            )
            if seals is not None:
                self._commit(writing.folder, writing.content, seals)
                return
            if time.monotonic() >= writing.ends_at:
                raise RunFailed(
                    f"the checkpoint {writing.folder} was not written within "
                    f"deadlines.checkpoint_s={self._timeout_s:g}: raise it, or look at the disk"
                )
            self._writing = writing

    def _commit(self, folder: Path, content: dict[str, Any], seals: Mapping[str, FileSeal]) -> None:
        self._folders.commit(folder, content, seals)
        self._newest = (content["step"], folder)

    @contextmanager
    def _abandoning(self, folder: Path) -> Iterator[None]:
        """Remove a folder that could not be written, and name the newest that is whole."""
        try:
            yield
        except MemberLost:  # The run may go on, and write it again.
            self._folders.abandon(folder)
            raise
        except (RunFailed, OSError) as error:
            if is_committed(folder):  # It is whole; an old one could not be removed.
                raise
            self._folders.abandon(folder)
            raise RunFailed(f"{error}\n{self._after_failure(folder)}") from error

    def check_content(self, folder: Path) -> None:
        """Compare the content of all files with the manifest, every rank its own.

        Does nothing for a checkpoint of a release without manifests.

        Raises:
            DamagedCheckpointError: a file has changed since it was written.
            RunFailed: a worker failed or was late.
        """
        manifest = read_manifest(folder)
        if manifest is None:
            return
        written = {
            f"{name}/{path}": seal
            for name in self._roles
            for path, seal in manifest.below(name).items()
        }
        # Sizes first: they cost nothing, and a missing file needs no reading of the others.
        problems = size_problems(folder, written)
        problems = problems or hash_problems(written, self._sealed(folder, sync=False))
        if problems:
            raise damaged(folder, listed(problems))

    def read(self, folder: Path) -> dict[str, Any]:
        """The driver's state of a checkpoint, with its `step`.

        Raises:
            RequestError: the checkpoint is damaged, or belongs to a run with other settings.
        """
        saved = read_state(folder)
        self._newest = (saved["step"], folder)
        check_identity(
            folder,
            saved["identity"],
            self._identity,
            files_there=saved.get("models"),
            files_here=self._settings.get("models"),
        )
        return saved

    def load_roles(self, folder: Path, names: Collection[str] | None = None) -> None:
        """Put roles where the checkpoint left them; all, or those of these names.

        Raises:
            RunFailed: a worker failed or was late.
        """
        roles = [(name, r) for name, r in self._roles.items() if names is None or name in names]
        self._wait([call for name, role in roles for call in role.load_checkpoint(folder / name)])

    def _sealed(self, folder: Path, *, sync: bool) -> dict[str, FileSeal]:
        """The seals of all roles' files, by their path in the checkpoint."""
        calls = {
            name: role.seal_checkpoint(folder / name, sync=sync)
            for name, role in self._roles.items()
        }
        seals = self._gathered(calls, timeout_s=self._timeout_s)
        assert seals is not None, "a rank that seals has written"
        return seals

    def _gathered(
        self, calls: Mapping[str, Sequence[Call]], *, timeout_s: float
    ) -> dict[str, FileSeal] | None:
        """The seals that calls to roles give, by path in the checkpoint; None if one gives none."""
        every = [call for own in calls.values() for call in own]
        found = iter(self._waiter.results(every, phase="checkpoint", timeout_s=timeout_s))
        by_role = [(name, next(found)) for name, own in calls.items() for _ in own]
        if any(seals is None for _, seals in by_role):
            return None
        return {f"{name}/{path}": seal for name, own in by_role for path, seal in own.items()}

    def _after_failure(self, folder: Path) -> str:
        committed = self._folders.committed()
        newest = "there is no other"
        if committed:
            newest = f"the newest committed one is {committed[-1]}"
        left = f"what is left is in {folder}" if folder.exists() else "its folder was removed"
        return f"the checkpoint {folder.name} was not written to the end: {left}; {newest}"

    def _wait(self, calls: Sequence[Call]) -> list[Any]:
        return self._waiter.results(calls, phase="checkpoint", timeout_s=self._timeout_s)
