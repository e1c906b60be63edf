"""Files of the groups that wait in a checkpoint: the builder writes and reads them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from rlhf_ray.checkpoint_files.manifest import FileSeal, seal_file, seal_share
from rlhf_ray.disk_space import full_disk_said
from rlhf_ray.records import GroupSummary, RolloutGroup
from rlhf_ray.records.group_files import read_groups, write_groups


class WaitingGroupFiles:
    """Writes files of groups, in a thread if training is to go on meanwhile."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="group-writer")
        # Files of one folder, by path.
        self._writing: dict[Path, Future[FileSeal]] = {}

    def save(self, path: Path, groups: Sequence[RolloutGroup], *, in_background: bool) -> None:
        """Write a file, or begin to: see `written`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if in_background:
            # What is left of another checkpoint was given up, or is committed.
            self._writing = {
                file: future for file, future in self._writing.items() if file.parent == path.parent
            }
            self._writing[path] = self._thread.submit(_written, path, groups)
            return
        with full_disk_said(path):
            write_groups(path, groups)

    def written(self, *, wait_s: float) -> dict[str, FileSeal] | None:
        """The seals of the files that were begun; None if they are not written after `wait_s`.

        It can be asked again: ranks that still write make the driver ask all of them again.

        Raises:
            Exception: that of the write.
        """
        if wait(self._writing.values(), timeout=wait_s).not_done:
            return None
        return {file.name: future.result() for file, future in self._writing.items()}

    def seal(self, folder: Path, *, sync: bool) -> dict[str, FileSeal]:
        """The seals of all files of the folder."""
        return seal_share(folder, rank=0, world_size=1, sync=sync)

    def load(
        self, path: Path, num_groups: int
    ) -> tuple[tuple[GroupSummary, ...], list[RolloutGroup]]:
        """The groups of a file, and their summaries.

        Raises:
            DamagedFileError: the file is damaged.
            ValueError: it has another number of groups.
        """
        groups = read_groups(path)
        if len(groups) != num_groups:
            raise ValueError(f"{path} has {len(groups)} groups, and {num_groups} were written")
        return tuple(group.summary() for group in groups), groups


def _written(path: Path, groups: Sequence[RolloutGroup]) -> FileSeal:
    with full_disk_said(path):
        write_groups(path, groups)
        return seal_file(path, sync=True)
