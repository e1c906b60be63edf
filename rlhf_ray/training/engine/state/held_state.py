"""A rank's state on its way to memory outside of the rank, and back into a rank of the same place.

The slices are those that the rank holds, as bytes in numpy arrays: Ray's object store takes the
memory of an array as it is. No file and no index is needed, because the state goes back to a rank
with the same layout.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_ray.checkpoint_files.slice_index import SavedTensor
from rlhf_ray.training.engine.state.state_parts import MOMENTS, StatePart

_MAX_NAMES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldSlice:
    """The values of a `StatePart`.

    Attributes:
        start, step: see `StatePart`.
        values: kind to its bytes [n] uint8.
    """

    start: int
    step: int | None
    values: Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankState:
    """All that one rank needs to go on from here.

    Attributes:
        optimizer_step: optimiser steps since the start of the run.
        slices: by name of the tensor.
        has_frozen: whether weights that no step changes are among them: they are not those of
            the model's files.
        random: see `checkpoint.random_states`.
    """

    optimizer_step: int
    slices: Mapping[str, HeldSlice]
    has_frozen: bool
    random: Mapping[str, Any]

    @property
    def num_bytes(self) -> int:
        """Bytes of all slices."""
        return sum(a.nbytes for held in self.slices.values() for a in held.values.values())

    def steps(self) -> dict[str, SavedTensor]:
        """The numbers of optimiser steps behind the moments, in the form of a checkpoint."""
        return {
            name: SavedTensor(shape=(), kinds=frozenset(held.values), step=held.step, pieces=())
            for name, held in self.slices.items()
        }


def held_slices(parts: Sequence[StatePart]) -> dict[str, HeldSlice]:
    """The values of parts as bytes.

    On a CPU they are views of the state itself: who keeps them must copy them before the next step,
    as Ray does with what a method returns.
    """
    return {
        part.name: HeldSlice(
            start=part.start,
            step=part.step,
            values={kind: _bytes(value) for kind, value in part.values.items()},
        )
        for part in parts
    }


@torch.no_grad()
def put_back(slices: Mapping[str, HeldSlice], parts: Sequence[StatePart]) -> None:
    """Fill the parts of a rank with the slices of its place.

    Raises:
        ValueError: they are of a rank with another layout or another model.
    """
    by_name = {part.name: part for part in parts}
    problems = [
        name
        for name, held in slices.items()
        if (part := by_name.get(name)) is None or not _fits(held, part)
    ]
    problems += [part.name for part in parts if part.step is not None and part.name not in slices]
    if problems:
        more = f" and {len(problems) - _MAX_NAMES} more" if len(problems) > _MAX_NAMES else ""
        raise ValueError(
            f"a state in memory is of a rank that holds other slices of "
            f"{', '.join(problems[:_MAX_NAMES])}{more} than this one"
        )
    for name, held in slices.items():
        for kind in _kinds(held):
            target = by_name[name].values[kind]
            if target.numel():
                target.copy_(_tensor(held.values[kind], target.dtype))


def _fits(held: HeldSlice, part: StatePart) -> bool:
    """Whether a slice has the place and the size of a part, in the same number formats."""
    return held.start == part.start and all(
        kind in part.values and held.values[kind].nbytes == part.values[kind].nbytes
        for kind in _kinds(held)
    )


def _kinds(held: HeldSlice) -> list[str]:
    """The values that go back. Before the first step moments are 0, and not made yet."""
    return [kind for kind in held.values if held.step != 0 or kind not in MOMENTS]


def _bytes(value: Tensor) -> np.ndarray:
    return value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def _tensor(values: np.ndarray, dtype: torch.dtype) -> Tensor:
    with warnings.catch_warnings():
        # Memory of the object store is read-only. Torch has no read-only tensors and warns.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values).view(dtype)
