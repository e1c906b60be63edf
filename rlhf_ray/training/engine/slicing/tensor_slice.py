"""The slice of a weight that a rank of a tensor group holds, without importing DeepSpeed.

    ranks of a role   0  1 | 2  3 | 4  5       groups of 2: the slices of one model
    data-parallel     0, 2, 4 and 1, 3, 5      the same slices of different samples

ZeRO divides a slice, and what all ranks hold whole, over the data-parallel ranks of a rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

_ATTRIBUTE = "tensor_slice"


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorGroup:
    """This rank's place among the ranks that hold a model together.

    Attributes:
        size: ranks of the group.
        index: of this rank in it, from 0.
        group: of these ranks.
        data_group: of the ranks that hold the same slices.
        data_size: ranks of `data_group`.
        data_index: of this rank in it.
    """

    size: int
    index: int
    group: ProcessGroup
    data_group: ProcessGroup
    data_size: int
    data_index: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSlice:
    """This rank's slice of a weight, one of equal slices.

    Attributes:
        dim: that is divided; None for a weight that every rank holds whole.
        shape: of the whole weight.
    """

    group: TensorGroup
    dim: int | None
    shape: tuple[int, ...]

    @property
    def place(self) -> int:
        """Index of this slice among the slices; 0 of a weight that is not divided."""
        return 0 if self.dim is None else self.group.index

    def of(self, whole: Tensor) -> Tensor:
        """The same slice of another whole tensor of this shape."""
        if self.dim is None:
            return whole
        length = self.shape[self.dim] // self.group.size
        return whole.narrow(self.dim, self.group.index * length, length)

    def joined(self, own: Tensor) -> Tensor:
        """Put the slices of all ranks of the group together; they call it together."""
        if self.dim is None:
            return own
        slices = [torch.empty_like(own) for _ in range(self.group.size)]
        torch.distributed.all_gather(slices, own.contiguous(), group=self.group.group)
        return torch.cat(slices, dim=self.dim)


def slice_of(tensor: Tensor) -> TensorSlice | None:
    """The slice that a weight is; None in a model without groups."""
    return vars(tensor).get(_ATTRIBUTE)


def mark_slices(module: nn.Module, group: TensorGroup, shapes: dict[str, tuple[int, ...]]) -> None:
    """Note at every parameter which slice of which tensor it is.

    Args:
        module: divided.
        shapes: of the parameters before.
    """
    for name, parameter in module.named_parameters():
        shape = shapes[name]
        divided = [d for d, length in enumerate(shape) if length != parameter.shape[d]]
        assert len(divided) <= 1, f"{name} {list(shape)} has slices {list(parameter.shape)}"
        dim = divided[0] if divided else None
        setattr(parameter, _ATTRIBUTE, TensorSlice(group=group, dim=dim, shape=shape))


def name_in_checkpoint(name: str, tensor: Tensor) -> str:
    """The name under which this rank's part of a weight is saved.

    A slice has its own: slices along the second dimension are no intervals of the flattened weight.
    """
    part = slice_of(tensor)
    return name if part is None else names_in_checkpoint(name, part)[part.place]


def names_in_checkpoint(name: str, part: TensorSlice | None) -> list[str]:
    """The names of all slices of a weight, in the order of the ranks; its own if it is whole."""
    if part is None or part.dim is None:
        return [name]
    return [f"{name}@{index}of{part.group.size}" for index in range(part.group.size)]


def whole_norm(parameters: Sequence[Tensor], group: TensorGroup) -> Tensor:
    """Norm of the gradient of all weights, of which this rank holds slices; see `TensorGroup`."""
    squares = torch.zeros(2, dtype=torch.float32, device=parameters[0].device)
    for parameter in parameters:
        if parameter.grad is not None:
            part = slice_of(parameter)
            is_slice = part is not None and part.dim is not None
            squares[int(is_slice)] += parameter.grad.float().square().sum()
    whole, slices = squares
    torch.distributed.all_reduce(slices, group=group.group)
    return (whole + slices).sqrt()
