"""What DeepSpeed's checkpoint leaves out: random states, counters, and whether it fits."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_FACTS_FILE = "role.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointFacts:
    """What a checkpoint was written by; all but the step must be the same to read it.

    Attributes:
        optimizer_step: 0 for a role without an optimizer.
    """

    world_size: int
    zero_stage: int
    dtype: str
    optimizer_step: int


def write_facts(folder: Path, facts: CheckpointFacts) -> None:
    (folder / _FACTS_FILE).write_text(json.dumps(asdict(facts), indent=2) + "\n")


def read_facts(folder: Path, *, world_size: int, zero_stage: int, dtype: str) -> CheckpointFacts:
    """Read the facts of a checkpoint that this role is to go on from.

    Raises:
        ValueError: there is none, or it was written with another number of ranks, ZeRO stage or
            number format.
    """
    path = folder / _FACTS_FILE
    if not path.is_file():
        raise ValueError(f"{path} is missing: {folder} is not a complete checkpoint of a role")
    facts = CheckpointFacts(**json.loads(path.read_text()))
    here = {"num_ranks": world_size, "zero_stage": zero_stage, "dtype": dtype}
    there = {"num_ranks": facts.world_size, "zero_stage": facts.zero_stage, "dtype": facts.dtype}
    for name, value in here.items():
        if there[name] != value:
            raise ValueError(
                f"the checkpoint {folder} was written with {name}={there[name]}, and this run "
                f"has {name}={value}: resume with {name}={there[name]}, or start a new run from "
                f"the saved model"
            )
    return facts


def write_random_states(folder: Path, rank: int) -> None:
    """Write the states of all random generators of this rank's process."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    states = {
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
    torch.save(states, _random_file(folder, rank))


def read_random_states(folder: Path, rank: int) -> None:
    """Put the random generators of this process where `write_random_states` found them."""
    states = torch.load(_random_file(folder, rank), weights_only=True)
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype("uint32"), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])


def write_parts(path: Path, parts: dict[str, Tensor]) -> None:
    """Write a rank's parts of tensors by name."""
    # Copied: a part would be written with all of the memory that it is a part of.
    torch.save({name: part.to("cpu", copy=True) for name, part in parts.items()}, path)


def read_parts(path: Path) -> dict[str, Tensor]:
    """What `write_parts` wrote, on the CPU."""
    return torch.load(path, weights_only=True, map_location="cpu")


def _random_file(folder: Path, rank: int) -> Path:
    return folder / f"random_rank_{rank:05d}.pt"
