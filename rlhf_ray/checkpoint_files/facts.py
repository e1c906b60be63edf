"""The facts of a role's checkpoint that must match when it is read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

FACTS_FILE = "role.json"
DEEPSPEED, SLICES = "deepspeed", "slices"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointFacts:
    """The run that wrote the checkpoint of a role.

    Attributes:
        optimizer_step: 0 for a role without an optimizer.
        format: of the files of tensors. Those of `DEEPSPEED`, which releases before wrote, fit one
            layout alone.
        sequence_parallel_size: ranks that computed every sample together, each some tokens.
        tensor_parallel_size: ranks that held the matrices of the model in slices.
    """

    world_size: int
    zero_stage: int
    dtype: str
    optimizer_step: int
    format: str = DEEPSPEED
    sequence_parallel_size: int = 1
    tensor_parallel_size: int = 1

    @property
    def ranks_per_sample(self) -> int:
        """Ranks that computed every sample together."""
        return self.sequence_parallel_size * self.tensor_parallel_size

    @property
    def layout_is_fixed(self) -> bool:
        """Whether only the ranks that wrote it can read it, at their ZeRO stage."""
        return self.format == DEEPSPEED


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleLayout:
    """The layout of a role in this run."""

    num_ranks: int
    zero_stage: int
    dtype: str
    tensor_parallel_size: int = 1


def write_facts(folder: Path, facts: CheckpointFacts) -> None:
    (folder / FACTS_FILE).write_text(json.dumps(asdict(facts), indent=2) + "\n", encoding="utf-8")


def load_facts(folder: Path) -> CheckpointFacts:
    """Read the facts of a role's folder.

    Raises:
        ValueError: the file is missing or damaged.
    """
    path = folder / FACTS_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        facts = CheckpointFacts(**values)
    except OSError as error:
        raise ValueError(
            f"{path} is missing: {folder} is not a complete checkpoint of a role "
            f"({error.strerror or error})"
        ) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it does not have a role's facts ({error})") from None
    numbers = (facts.world_size, facts.zero_stage, facts.optimizer_step)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"{path} is damaged: it does not have a role's facts ({values})")
    sizes = (facts.sequence_parallel_size, facts.tensor_parallel_size)
    is_fine = all(type(size) is int and size > 0 for size in sizes)
    if facts.world_size < 1 or not is_fine or facts.world_size % facts.ranks_per_sample:
        raise ValueError(
            f"{path} is damaged: world_size={facts.world_size}, sequence_parallel_size={sizes[0]}, "
            f"tensor_parallel_size={sizes[1]}"
        )
    return facts


def layout_problem(folder: Path, facts: CheckpointFacts, here: RoleLayout) -> str | None:
    """Compare a checkpoint's layout with a role's; a sentence if it cannot be read, else None."""
    if facts.format not in (DEEPSPEED, SLICES):
        return (
            f"the checkpoint {folder} has format={facts.format!r}, and this release reads {SLICES} "
            f"and {DEEPSPEED}: resume with the release that wrote it"
        )
    changed = _changes(facts, here)
    if "dtype" in changed:
        written, now = changed["dtype"]
        return (
            f"the checkpoint {folder} was written with dtype={written}, and this run has "
            f"dtype={now}: resume with dtype={written}, or start a new run from the saved model"
        )
    if "tensor_parallel_size" in changed:
        written, now = changed["tensor_parallel_size"]
        return (
            f"the checkpoint {folder} was written with tensor_parallel_size={written}, and this "
            f"run has tensor_parallel_size={now}: its files have the slices of {written} ranks; "
            f"resume with tensor_parallel_size={written}, on any number of ranks and at any "
            f"zero_stage, or start a new run from the saved model"
        )
    if changed and facts.layout_is_fixed:
        name, (written, now) = next(iter(changed.items()))
        return (
            f"the checkpoint {folder} was written with {name}={written}, and this run has "
            f"{name}={now}: it is of a release whose checkpoints fit one layout alone; resume "
            f"with {name}={written}, or start a new run from the saved model"
        )
    return None


def layout_change(name: str, facts: CheckpointFacts, here: RoleLayout) -> str | None:
    """A sentence about a role that goes on with other ranks or at another ZeRO stage."""
    changed = _changes(facts, here)
    if not changed:
        return None
    sentence = (
        f"{name}: saved by {_ranks(facts.world_size)} at zero_stage={facts.zero_stage}, resumed on "
        f"{_ranks(here.num_ranks)} at zero_stage={here.zero_stage}; metrics differ from those of "
        f"the old layout in their last digits"
    )
    if here.num_ranks > facts.world_size:
        sentence += ", and ranks that were not there start their random generators from the seed"
    elif here.num_ranks < facts.world_size:
        sentence += ", and random generators of ranks that are gone are not used"
    return sentence


def _changes(facts: CheckpointFacts, here: RoleLayout) -> dict[str, tuple[object, object]]:
    """Keys of a role whose value differs: that of the checkpoint, and that of this run."""
    there = RoleLayout(
        num_ranks=facts.world_size,
        zero_stage=facts.zero_stage,
        dtype=facts.dtype,
        tensor_parallel_size=facts.tensor_parallel_size,
    )
    before, now = asdict(there), asdict(here)
    return {name: (before[name], now[name]) for name in now if before[name] != now[name]}


def _ranks(number: int) -> str:
    return f"{number} rank{'s' if number > 1 else ''}"
