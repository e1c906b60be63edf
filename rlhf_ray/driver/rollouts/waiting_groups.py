"""The part of a checkpoint for groups that wait: scored for a later batch, or kept for replay.

The groups lie in the object store. The builder writes them to files, and reads them back, so that
the driver never holds a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.driver.checkpoint_state import reading_state
from rlhf_ray.driver.resume_changes import RunSettings, changed_objectives
from rlhf_ray.driver.roles import BuilderRole
from rlhf_ray.driver.rollouts.pipeline import RolloutPipeline
from rlhf_ray.driver.rollouts.restored import Scored

FOLDER = "groups"
# Of one file, whose groups the builder holds at a time (some 350 MB) and gets in one call.
_FILE_TOKENS, _FILE_GROUPS = 2**24, 1024


class NoWaitingGroups:
    """Null object of checkpoints without groups."""

    def gather(self, pipeline: RolloutPipeline) -> None: ...

    def state_dict(self) -> list[int]:
        return []

    def restore(
        self,
        folder: Path,
        saved: Mapping[str, Any],
        pipeline: RolloutPipeline,
        say: Callable[[str], None],
    ) -> None: ...


class WaitingGroups:
    """Groups of the pipeline, as a role that has a folder in every checkpoint.

    Args:
        settings: of this run. Groups of a run that optimised something else are sampled again.
        timeout_s: deadline of reading.
    """

    def __init__(
        self, builder: BuilderRole, waiter: CallWaiter, *, settings: RunSettings, timeout_s: float
    ) -> None:
        self._builder = builder
        self._waiter = waiter
        self._settings = settings
        self._timeout_s = timeout_s
        self._files: list[list[Any]] = []
        self._folder: Path | None = None

    def gather(self, pipeline: RolloutPipeline) -> None:
        """Choose what the next checkpoint has; its driver's state must be taken at once."""
        pipeline.take_finished()
        self._files = list(_divided(pipeline.waiting_groups()))

    def state_dict(self) -> list[int]:
        """The number of groups in every file."""
        return [len(groups) for groups in self._files]

    def save_checkpoint(self, folder: Path) -> list[Call]:
        return self._save(folder, in_background=False)

    def begin_checkpoint(self, folder: Path) -> list[Call]:
        return self._save(folder, in_background=True)

    def written_checkpoint(self, *, wait_s: float) -> list[Call]:
        return [] if self._folder is None else [self._builder.written_groups(wait_s=wait_s)]

    def seal_checkpoint(self, folder: Path, *, sync: bool) -> list[Call]:
        # Most checkpoints have no groups: none waits in a synchronous run.
        if folder != self._folder and not folder.is_dir():
            return []
        return [self._builder.seal_groups(folder, sync=sync)]

    def load_checkpoint(self, folder: Path) -> list[Call]:
        """Nothing: `restore` reads the groups, whose summaries the driver wants."""
        del folder
        return []

    def restore(
        self,
        folder: Path,
        saved: Mapping[str, Any],
        pipeline: RolloutPipeline,
        say: Callable[[str], None],
    ) -> None:
        """Give the pipeline the groups of a checkpoint, and say what is sampled again.

        Args:
            folder: of the checkpoint; `saved`: its driver's state, which the pipeline has loaded.

        Raises:
            DamagedCheckpointError: files and state do not belong together.
            RunFailed: the builder failed or was late.
        """
        sizes = saved.get("groups")
        if sizes is None:
            if number := pipeline.num_to_restore:
                say(
                    f"the checkpoint {folder} is of a release that kept no groups: the {number} "
                    f"prompts that were in flight are sampled again"
                )
            return
        if sizes and (changed := changed_objectives(saved, self._settings)):
            say(
                f"{sum(sizes)} groups that waited in the checkpoint are sampled again: "
                f"{', '.join(changed)} changed since"
            )
            return
        calls = [
            self._builder.load_groups(folder / FOLDER / _name(number), size)
            for number, size in enumerate(sizes)
        ]
        summaries = self._waiter.results(calls, phase="checkpoint", timeout_s=self._timeout_s)
        groups: list[Scored] = [
            item
            for call, own in zip(calls, summaries, strict=True)
            for item in zip(call.payload, own, strict=True)
        ]
        with reading_state(folder):
            too_old = pipeline.restore_groups(groups, step=saved["step"])
        if groups:
            say(_account(len(groups), too_old))

    def _save(self, folder: Path, *, in_background: bool) -> list[Call]:
        files, self._files = self._files, []
        self._folder = folder if files else None
        return [
            self._builder.save_groups(folder / _name(number), groups, in_background=in_background)
            for number, groups in enumerate(files)
        ]


def _divided(groups: Sequence[Scored]) -> Iterator[list[Any]]:
    """References to the groups of one file after the other."""
    file: list[Any] = []
    num_tokens = 0
    for group, summary in groups:
        size = sum(summary.sample_lengths)
        if file and (num_tokens + size > _FILE_TOKENS or len(file) == _FILE_GROUPS):
            yield file
            file, num_tokens = [], 0
        file.append(group)
        num_tokens += size
    if file:
        yield file


def _name(number: int) -> str:
    return f"groups_{number:05d}.safetensors"


def _account(number: int, too_old: int) -> str:
    kept = f"{number - too_old} of {number} groups that waited in the checkpoint go on"
    if not too_old:
        return kept
    return f"{kept}; {too_old} are older than max_staleness allows, and are sampled again"


NO_WAITING_GROUPS = NoWaitingGroups()
