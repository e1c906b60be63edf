"""The facts of a role's checkpoint that must match when it is read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

FACTS_FILE = "role.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointFacts:
    """The run that wrote a checkpoint; all but the step must match to read it.

    Attributes:
        optimizer_step: 0 for a role without an optimizer.
    """

    world_size: int
    zero_stage: int
    dtype: str
    optimizer_step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RoleLayout:
    """The layout of a role in this run; DeepSpeed's files fit no other."""

    num_ranks: int
    zero_stage: int
    dtype: str


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
    return facts


def layout_problem(folder: Path, facts: CheckpointFacts, here: RoleLayout) -> str | None:
    """Compare a checkpoint's layout with a role's; a sentence if it cannot be read, else None."""
    there = RoleLayout(num_ranks=facts.world_size, zero_stage=facts.zero_stage, dtype=facts.dtype)
    for name, value in asdict(here).items():
        written = asdict(there)[name]
        if written != value:
            return (
                f"the checkpoint {folder} was written with {name}={written}, and this run has "
                f"{name}={value}: resume with {name}={written}, or start a new run from the saved "
                f"model"
            )
    return None
