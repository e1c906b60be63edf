"""Memory and time of the snapshots from which learner and critic go on after a loss."""

from __future__ import annotations

from dataclasses import replace

from rlhf_ray.config.run import Config
from rlhf_ray.disk_space import size_in_words
from rlhf_ray.planning.storage.disk import RoleShare, trained_shares

# Of a rank: to host memory, and from there to the object store, next to the other ranks of its
# node. An estimate; see docs/reliability.md.
_BYTES_PER_S = 2e9


def snapshot_lines(config: Config) -> list[str]:
    """The snapshots of a run, as lines for a user; none for a run that takes none."""
    recovery = config.recovery
    if not recovery.max_restarts:
        return []
    if not recovery.snapshot_every:
        source = "the last checkpoint" if config.checkpoint.every_steps else "the start"
        return [f"Recovery of learner and critic: from {source}, with all updates since then"]
    shares = [_held(config, share) for share in trained_shares(config)]
    every = f"every {recovery.snapshot_every} steps" if recovery.snapshot_every > 1 else "each step"
    if not shares:
        return [f"Snapshot after {every}: of unknown size, because that of the model is not known"]
    seconds = max(share.per_rank for share in shares) / _BYTES_PER_S
    return [
        f"Snapshot after {every}: {size_in_words(sum(share.bytes for share in shares))} "
        f"({', '.join(map(str, shares))}), twice in Ray's object store while one is taken; some "
        f"{max(seconds, 0.1):.1f} s, while the engines sample"
    ]


def _held(config: Config, share: RoleShare) -> RoleShare:
    """A share as ranks hold it: without ZeRO each holds all, of which a checkpoint has one copy."""
    role = config.training if share.name == "learner" else config.critic
    copies = role.num_ranks // role.tensor_parallel_size if role.zero_stage == 0 else 1
    return replace(share, bytes=share.bytes * copies)
