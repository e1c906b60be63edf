"""The roles as Ray actors.

Each class imports its worker in its own process only, takes object references as plain
arguments (Ray resolves those and no nested ones), and returns a small signal first and a large
result second, so that the driver can learn of an error without fetching the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.batching.balance import balance
from rlhf_ray.calls import Call
from rlhf_ray.cluster.runtime.process import ActorProcess
from rlhf_ray.cluster.runtime.supervisor import Member
from rlhf_ray.records import (
    RolloutGroup,
)

# Ranks of one role, in order, and where rank 0 listens.
Address = tuple[str, int]


class RankActor(ActorProcess):
    """What the DeepSpeed roles have in common."""

    _worker: Any

    def start(self, rank: int, world_size: int, address: Address) -> None:
        self._worker.start(rank, world_size, *address)

    def score(self, *groups: RolloutGroup) -> tuple[None, Any]:
        return None, self._worker.score(groups)

    def close(self) -> None:
        self._worker.close()


class CheckpointedActor(RankActor):
    """What the roles with a folder in a checkpoint have in common."""

    def save_checkpoint(self, folder: Path) -> None:
        self._worker.save_checkpoint(folder)

    def load_checkpoint(self, folder: Path) -> None:
        self._worker.load_checkpoint(folder)


class TrainedActor(CheckpointedActor):
    """What learner and critic have in common."""

    def offload_states(self) -> None:
        self._worker.offload_states()

    def reload_states(self) -> None:
        self._worker.reload_states()


def call_of(member: Member, refs: Any) -> Call:
    """Of a method that returns one value, or a signal and a payload."""
    signal, payload = refs if isinstance(refs, list) else (refs, None)
    return Call(member=member.name, signal=signal, payload=payload)


class RankGroup:
    """All ranks of a DeepSpeed role."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = tuple(members)

    def score(self, groups: Sequence[Any], num_tokens: Sequence[int]) -> list[Call]:
        """Per-token values of scattered groups.

        Args:
            groups: references; num_tokens: of each, to balance the ranks.

        Returns:
            a call per rank, with a reference to its `list[TokenValues]` as payload.
        """
        return self._scattered([m.handle.score for m in self._members], groups, num_tokens)

    def _scattered(
        self, methods: Sequence[Any], groups: Sequence[Any], num_tokens: Sequence[int]
    ) -> list[Call]:
        """A rank's method with its share of the groups, for every rank."""
        shares = balance(num_tokens, len(self._members))
        return [
            call_of(member, method.options(num_returns=2).remote(*(groups[i] for i in share)))
            for member, method, share in zip(self._members, methods, shares, strict=True)
        ]


class CheckpointedGroup(RankGroup):
    """All ranks of a role that a checkpoint has a folder of."""

    def save_checkpoint(self, folder: Path) -> list[Call]:
        return [call_of(m, m.handle.save_checkpoint.remote(folder)) for m in self._members]

    def load_checkpoint(self, folder: Path) -> list[Call]:
        return [call_of(m, m.handle.load_checkpoint.remote(folder)) for m in self._members]


class TrainedGroup(CheckpointedGroup):
    """All ranks of a role with an optimizer."""

    def offload_states(self) -> list[Call]:
        return [call_of(m, m.handle.offload_states.remote()) for m in self._members]

    def reload_states(self) -> list[Call]:
        return [call_of(m, m.handle.reload_states.remote()) for m in self._members]
