"""Where moved weights are in a checkpoint: one file per rank that holds a part of them."""

from __future__ import annotations

from pathlib import Path

import torch

from rlhf_ray.config.groups.training import RoleConfig
from rlhf_ray.training.engine.checkpoint import (
    CheckpointFacts,
    read_facts,
    read_parts,
    write_facts,
    write_parts,
)
from rlhf_ray.training.engine.ranks import rank, world_size
from rlhf_ray.training.weights.ema_reference import MovingWeights


def save_moving(folder: Path, weights: MovingWeights, role: RoleConfig) -> None:
    """Write the average, so that a later one equals that of a run that was not interrupted.

    Every rank calls it; the folder is complete when all have returned. Ranks that hold the whole
    of the weights leave the writing to rank 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if rank() == _owner(role):
        write_parts(_file(folder, role), weights.state_dict())
    if rank() == 0:
        facts = CheckpointFacts(
            world_size=world_size(),
            zero_stage=role.zero_stage,
            dtype=role.dtype,
            optimizer_step=0,
        )
        write_facts(folder, facts)
    torch.distributed.barrier()


def load_moving(folder: Path, weights: MovingWeights, role: RoleConfig) -> None:
    """Read what `save_moving` wrote; every rank calls it.

    Raises:
        ValueError: it is incomplete, of another number of ranks, ZeRO stage or dtype, or of a
            model with other weights.
    """
    read_facts(folder, world_size=world_size(), zero_stage=role.zero_stage, dtype=role.dtype)
    weights.load_state_dict(read_parts(_file(folder, role)))


def _owner(role: RoleConfig) -> int:
    """The rank whose file has this rank's part."""
    return rank() if role.zero_stage == 3 else 0


def _file(folder: Path, role: RoleConfig) -> Path:
    return folder / f"moving_rank_{_owner(role):05d}.pt"
