"""Frozen weights, which no step changes: a checkpoint has a sum over their bits, and no values.

The sum over a tensor is the sum over its parts, modulo 2**64. So it is the same for any number of
ranks and at any ZeRO stage, and every rank looks at an equal share of the weights, once.

A weight that a tensor group has divided has a sum for each of its slices, under their names. Every
rank knows the sums of all slices, so that all find the same of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rlhf_ray.checkpoint_files.slice_index import NUM_SUMS, SavedTensor
from rlhf_ray.training.engine.ranks import reduce_over_ranks, training_device
from rlhf_ray.training.engine.shards import distinct_tensors
from rlhf_ray.training.engine.slicing.tensor_slice import name_in_checkpoint, names_in_checkpoint
from rlhf_ray.training.engine.state.state_parts import WEIGHT, StatePart, own_share, plain_part

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 2**20
# Odd numbers without a pattern in their bits, as signed integers of 64 bits.
_OF_PLACE, _OF_VALUE, _LAST = 0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9, 0x14D049BB133111EB
_SHIFT = 29
_MAX_NAMES = 3


class FrozenWeights:
    """The parameters of a module that no optimizer moves; buffers are no part of them.

    Args:
        module: of a DeepSpeed engine, after its start.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._summed: dict[str, StatePart] | None = None
        self._are_written = False
        self._are_compared = False

    def left_out(self, parts: Iterable[StatePart]) -> list[StatePart]:
        """The parts that a rank writes, with sums in place of the values of frozen weights."""
        if self._are_written:
            return list(parts)
        own = {part.name: part for part in self._own().values()}
        return [own.get(part.name, part) for part in parts]

    @property
    def are_replaced(self) -> bool:
        """Whether a checkpoint of a release before has put other values into these weights."""
        return self._are_written

    def not_in_files(self, parts: Iterable[StatePart]) -> list[StatePart]:
        """The parts that a start from the model's files does not give: all but these weights."""
        if self._are_written:
            return list(parts)
        frozen = {
            name_in_checkpoint(name, tensor)
            for name, tensor in distinct_tensors(self._module).items()
            if isinstance(tensor, nn.Parameter) and not tensor.requires_grad
        }
        return [part for part in parts if part.name not in frozen]

    def still_to_read(
        self, folder: Path, saved: Mapping[str, SavedTensor], parts: Iterable[StatePart]
    ) -> list[StatePart]:
        """The parts without those of which a checkpoint has a sum; all ranks call it together.

        Raises:
            ValueError: a frozen weight is another one than that of the checkpoint.
        """
        whole = self._whole()
        shapes = {
            name: part.shape
            for base, part in self._own().items()
            for name in names_in_checkpoint(base, part.part)
        }
        sums = {
            name: there.checksum
            for name in whole
            if (there := saved.get(name)) is not None
            and there.checksum is not None
            and there.shape == shapes[name]
        }
        others = [name for name, checksum in sums.items() if whole[name] != checksum]
        if others:
            more = f" and {len(others) - _MAX_NAMES} more" if len(others) > _MAX_NAMES else ""
            raise ValueError(
                f"the checkpoint {folder} belongs to another base model: it has no frozen weights, "
                f"because no step changes them, and {', '.join(others[:_MAX_NAMES])}{more} of this "
                f"run are others than those that it was trained with; resume with its model, or "
                f"start a new run from the saved model"
            )
        self._are_compared = sums.keys() == whole.keys()
        return [part for part in parts if part.name not in sums]

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """A block that may put values of a checkpoint into the weights; for all ranks together.

        Releases before wrote these values. If they are others than those of this run's model, which
        a run that is resumed later loads again, its checkpoints go on to have the values.
        """
        before = self._whole()
        self._are_compared = False
        yield
        if self._are_compared:
            return  # No value of theirs was read.
        self._summed = None
        self._are_written = self._are_written or self._whole() != before

    def _own(self) -> dict[str, StatePart]:
        """This rank's share of every weight or slice, by name in the module: a sum, no values."""
        if self._summed is None:
            self._summed = {
                name: _summed(own_share(plain_part(name, tensor)))
                for name, tensor in distinct_tensors(self._module).items()
                if isinstance(tensor, nn.Parameter) and not tensor.requires_grad
            }
        return self._summed

    def _whole(self) -> dict[str, int]:
        """The sums over whole weights, or over all slices; all ranks call it together."""
        shares: dict[str, int] = {}
        for base, part in self._own().items():
            names = names_in_checkpoint(base, part.part)
            shares |= dict.fromkeys(names, 0)
            shares[part.name] = _signed(part.checksum or 0)
        if not shares:
            return {}
        sums = reduce_over_ranks(torch.tensor(list(shares.values()), device=training_device()))
        return {name: value % NUM_SUMS for name, value in zip(shares, sums.tolist(), strict=True)}


@torch.no_grad()
def slice_sum(values: Tensor, start: int) -> int:
    """A sum over the bits of a slice, mixed with their places, modulo 2**64.

    Any change of values changes it, but for one in 2**64. It finds another model, and no forgery.

    Args:
        values [n]: of any format of 1, 2, 4 or 8 bytes.
        start: index of the first element in the flattened tensor.
    """
    bits = values.detach().reshape(-1).view(_BITS[values.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=values.device)
    for first in range(0, bits.numel(), _CHUNK):
        chunk = bits[first : first + _CHUNK].to(torch.int64)
        begin = start + first
        place = torch.arange(begin, begin + chunk.numel(), device=values.device)
        mixed = (chunk ^ place.mul_(_OF_PLACE)).mul_(_OF_VALUE)
        mixed = (mixed ^ (mixed >> _SHIFT)).mul_(_LAST)
        total += (mixed ^ (mixed >> _SHIFT)).sum()
    return int(total) % NUM_SUMS


def _summed(part: StatePart) -> StatePart:
    return replace(part, values={}, checksum=slice_sum(part.values[WEIGHT], part.start))


def _signed(checksum: int) -> int:
    """The integer of 64 bits with a sign that has the same bits."""
    return checksum - NUM_SUMS if checksum >= NUM_SUMS // 2 else checksum
