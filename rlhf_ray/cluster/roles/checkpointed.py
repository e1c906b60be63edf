"""Roles with a folder in every checkpoint: their actors and groups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_ray.calls import Call
from rlhf_ray.checkpoint_files.background import BackgroundWrite
from rlhf_ray.checkpoint_files.manifest import FileSeal, seal_share
from rlhf_ray.cluster.roles.base import RankActor, RankGroup, call_of
from rlhf_ray.disk_space import full_disk_said

if TYPE_CHECKING:
    from rlhf_ray.publish.base import LearnerPart


class CheckpointedActor(RankActor):
    """One rank of a role that has a folder in every checkpoint."""

    _writing: BackgroundWrite[dict[str, FileSeal]] | None = None

    def save_checkpoint(self, folder: Path) -> None:
        with full_disk_said(folder):
            self._worker.save_checkpoint(folder)

    def load_checkpoint(self, folder: Path) -> None:
        self._worker.load_checkpoint(folder)

    def seal_checkpoint(
        self, folder: Path, rank: int, world_size: int, sync: bool
    ) -> dict[str, FileSeal]:
        return seal_share(folder, rank=rank, world_size=world_size, sync=sync)

    def begin_checkpoint(self, folder: Path, rank: int, world_size: int) -> None:
        write = self._worker.snapshot()

        def write_and_seal() -> dict[str, FileSeal]:
            with full_disk_said(folder):
                write(folder)
                return seal_share(folder, rank=rank, world_size=world_size, sync=True)

        self._writing = BackgroundWrite(write_and_seal)

    def written_checkpoint(self, wait_s: float) -> dict[str, FileSeal] | None:
        assert self._writing is not None, "call begin_checkpoint() first"
        return self._writing.result(wait_s=wait_s)


class TrainedActor(CheckpointedActor):
    """One rank of a role with an optimizer."""

    def offload_states(self, part: LearnerPart) -> None:
        self._worker.offload_states(part)

    def reload_states(self) -> None:
        self._worker.reload_states()

    def take_state(self) -> tuple[int, Any]:
        # Ray has copied the state into its store before the next method starts.
        state = self._worker.take_state()
        return state.num_bytes, state

    def restore_state(self, state: Any) -> None:
        self._worker.restore_state(state)


class CheckpointedGroup(RankGroup):
    """All ranks of a role that has a folder in every checkpoint."""

    def save_checkpoint(self, folder: Path) -> list[Call]:
        return [call_of(m, m.handle.save_checkpoint.remote(folder)) for m in self._members]

    def load_checkpoint(self, folder: Path) -> list[Call]:
        return [call_of(m, m.handle.load_checkpoint.remote(folder)) for m in self._members]

    def seal_checkpoint(self, folder: Path, *, sync: bool) -> list[Call]:
        """Hash the files of a checkpoint, every rank its own; see `manifest.seal_share`."""
        size = len(self._members)
        return [
            call_of(m, m.handle.seal_checkpoint.remote(folder, rank, size, sync))
            for rank, m in enumerate(self._members)
        ]

    def begin_checkpoint(self, folder: Path) -> list[Call]:
        """Copy the state to host memory, and write it in a thread while the role goes on."""
        size = len(self._members)
        return [
            call_of(m, m.handle.begin_checkpoint.remote(folder, rank, size))
            for rank, m in enumerate(self._members)
        ]

    def written_checkpoint(self, *, wait_s: float) -> list[Call]:
        """Ask whether the files of `begin_checkpoint` are written; see `Checkpointed`."""
        return [call_of(m, m.handle.written_checkpoint.remote(wait_s)) for m in self._members]


class TrainedGroup(CheckpointedGroup):
    """All ranks of a role with an optimizer."""

    def offload_states(self, part: LearnerPart) -> list[Call]:
        """Move a part to host memory; `WEIGHTS` after `STATES`."""
        return [call_of(m, m.handle.offload_states.remote(part)) for m in self._members]

    def reload_states(self) -> list[Call]:
        return [call_of(m, m.handle.reload_states.remote()) for m in self._members]

    def take_state(self) -> list[Call]:
        """Copy the state to the object store of each rank's node, which outlives the rank.

        Signal: bytes. Payload: the state, which belongs to the caller.
        """
        return [
            call_of(m, m.handle.take_state.options(num_returns=2).remote()) for m in self._members
        ]

    def restore_state(self, states: Sequence[Any]) -> list[Call]:
        """Go on from the payloads of `take_state`, in the order of the ranks."""
        return [
            call_of(member, member.handle.restore_state.remote(state))
            for member, state in zip(self._members, states, strict=True)
        ]
