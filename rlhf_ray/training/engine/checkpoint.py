"""The small files of a role's checkpoint: facts that must match, random states."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_ray.checkpoint_files.facts import (
    CheckpointFacts,
    RoleLayout,
    layout_problem,
    load_facts,
)
from rlhf_ray.config.groups.training import RoleConfig
from rlhf_ray.plain_files import load_plain
from rlhf_ray.training.engine.ranks import world_size


def read_facts(folder: Path, role: RoleConfig) -> CheckpointFacts:
    """Read the facts of a checkpoint, and check that this role can resume from it.

    Raises:
        ValueError: the file is missing or damaged, or the checkpoint was written in another number
            format, or in files that fit another layout alone.
    """
    facts = load_facts(folder)
    here = RoleLayout(
        num_ranks=world_size(),
        zero_stage=role.zero_stage,
        dtype=role.dtype,
        tensor_parallel_size=role.tensor_parallel_size,
    )
    if problem := layout_problem(folder, facts, here):
        raise ValueError(problem)
    return facts


def random_states() -> dict[str, Any]:
    """The states of all random generators of this rank's process."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype("int64")),
            position,
            has_gauss,
            cached,
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def write_random_states(folder: Path, rank: int, states: dict[str, Any]) -> None:
    """Write the result of `random_states`."""
    torch.save(states, _random_file(folder, rank))


def read_random_states(folder: Path, rank: int, num_saved: int) -> None:
    """Restore the random generators of this process from the file of `write_random_states`.

    Does nothing on a rank that was not there when `num_saved` ranks wrote: its generators start
    from the run's seed.
    """
    if rank >= num_saved:
        return
    set_random_states(load_plain(_random_file(folder, rank)))


def set_random_states(states: Mapping[str, Any]) -> None:
    """Restore the random generators of this process from the result of `random_states`."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype("uint32"), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])


def read_earlier_parts(path: Path) -> dict[str, Tensor]:
    """Read parts of tensors, by name, as releases before wrote them; they are on the CPU."""
    return load_plain(path)


def _random_file(folder: Path, rank: int) -> Path:
    return folder / f"random_rank_{rank:05d}.pt"
