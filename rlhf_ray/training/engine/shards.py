"""The part of a tensor that this rank holds, at any ZeRO stage, without importing DeepSpeed.

Reads the attributes that DeepSpeed 0.19.8 sets on the parameters that it shards: `ds_id`,
`ds_shape`, `ds_numel`, `ds_tensor` and `_z3_optimizer` (ZeRO-3), and `_hp_mapping` (ZeRO-1 and
ZeRO-2, which shard the optimizer but not the weights).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_ray.training.engine.ranks import rank, training_device
from rlhf_ray.training.engine.slicing.tensor_slice import TensorSlice, slice_of


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerPlace:
    """The place of this rank's part of a trained parameter in its optimizer.

    Attributes:
        flat [m]: the tensor that the optimizer moves, which has parts of other parameters too; at
            stage 0 the parameter itself.
        offset, length: of the part in the flattened `flat`, without padding.
        start: index of the part's first element in the flattened parameter.
    """

    flat: Tensor
    offset: int
    length: int
    start: int

    def of(self, flat: Tensor) -> Tensor:
        """This part of the flat weights or of a state of the same shape; a view."""
        return flat.data.view(-1)[self.offset : self.offset + self.length]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A slice of a flattened tensor.

    Attributes:
        values [n]: a view without padding; writing to it changes the weight.
        start: index of its first element in the flattened tensor.
        shape: shape of the tensor: the whole one, or this rank's slice in a tensor group.
        part: that slice; None without groups.
    """

    values: Tensor
    start: int
    shape: tuple[int, ...]
    part: TensorSlice | None = None

    def of(self, whole: Tensor) -> Tensor:
        """The same part [n] of another whole tensor of the weight's shape."""
        own = whole if self.part is None else self.part.of(whole)
        return own.reshape(-1)[self.start : self.start + self.values.numel()]


class WeightBorrower(nn.Module, ABC):
    """A module that computes with weights of other modules.

    ZeRO-3 gathers the weights of a module around its call. The engines make it gather these, too.
    """

    @abstractmethod
    def borrowed_weights(self) -> Sequence[nn.Parameter]:
        """The weights of other modules; asked for when they are sharded."""


def is_partitioned(tensor: Tensor) -> bool:
    """Whether ZeRO-3 has sharded the tensor."""
    return "ds_id" in vars(tensor)


def distinct_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, in the order of the state dict, each tensor once."""
    # By identity: under ZeRO-3 all sharded tensors are empty, and their addresses say nothing.
    seen: set[int] = set()
    distinct: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            distinct[name] = tensor
    return distinct


def num_elements(tensor: Any) -> int:
    """Elements of the whole tensor, even if ranks hold parts of it."""
    return math.prod(whole_shape(tensor))


def whole_shape(tensor: Any) -> tuple[int, ...]:
    """Shape of the whole tensor, even if ranks hold parts of it."""
    part = slice_of(tensor)
    return slice_shape(tensor) if part is None else part.shape


def slice_shape(tensor: Any) -> tuple[int, ...]:
    """Shape of this rank's slice in a tensor group, even if ZeRO-3 has sharded it."""
    return tuple(tensor.ds_shape if is_partitioned(tensor) else tensor.shape)


def weight_shard(tensor: Any) -> Shard:
    """This rank's part of a weight, in the number format of the weight.

    The whole weight below ZeRO-3.
    """
    shape, part = slice_shape(tensor), slice_of(tensor)
    if not is_partitioned(tensor):
        return Shard(values=tensor.data.view(-1), start=0, shape=shape, part=part)
    # `tensor.data` is empty between forward passes, or a temporary whole copy: the weight itself is
    # `ds_tensor`, one flat piece per rank.
    start, length = _place(tensor)
    values = tensor.ds_tensor.data[:length]
    return Shard(values=values, start=start, shape=shape, part=part)


def optimizer_shard(parameter: Any) -> Shard:
    """This rank's part of a trained parameter as its optimizer holds it, in float32.

    The whole parameter without ZeRO; an empty slice if other ranks hold all of it. With an
    offloaded optimizer the values may be a copy: only read them.
    """
    shape, part = slice_shape(parameter), slice_of(parameter)
    if is_partitioned(parameter):
        # The float32 master weights, cut like the bfloat16 weights and padded like them.
        start, length = _place(parameter)
        values = parameter._z3_optimizer.get_local_fp32_param(parameter)
        return Shard(values=values.view(-1)[:length], start=start, shape=shape, part=part)
    if not _is_mapped(parameter):
        return Shard(values=parameter.data.view(-1), start=0, shape=shape, part=part)
    # ZeRO-1 and ZeRO-2 concatenate all parameters of a group and cut the long vector into equal
    # parts, one per rank. A rank boundary may fall inside a parameter, and most parameters lie
    # wholly in the part of another rank: those have no fragment here.
    fragment = parameter._hp_mapping
    if fragment is None:
        nothing = torch.empty(0, device=parameter.device)
        return Shard(values=nothing, start=0, shape=shape, part=part)
    start = fragment.lp_fragment_address.start
    return Shard(values=fragment.hp_fragment.data, start=start, shape=shape, part=part)


def optimizer_place(parameter: Any, optimizer: torch.optim.Optimizer) -> OptimizerPlace | None:
    """The place of this rank's part of a trained parameter in the optimizer that DeepSpeed calls.

    None if other ranks hold all of it.
    """
    if is_partitioned(parameter):
        zero = parameter._z3_optimizer
        group, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
        start, length = _place(parameter)
        flat = zero.fp32_partitioned_groups_flat[group]
        return OptimizerPlace(flat=flat, offset=offset, length=length, start=start)
    if not _is_mapped(parameter):
        return OptimizerPlace(flat=parameter, offset=0, length=parameter.numel(), start=0)
    fragment = parameter._hp_mapping
    if fragment is None:
        return None
    # Not `fragment.hp_fragment`: it is stale while the optimizer's states are on the host.
    (flat,) = optimizer.param_groups[fragment.param_group_index]["params"]
    return OptimizerPlace(
        flat=flat,
        offset=fragment.hp_fragment_address.start,
        length=fragment.hp_fragment_address.numel,
        start=fragment.lp_fragment_address.start,
    )


def is_spread(parameter: Tensor) -> bool:
    """Whether ranks hold different parts of a parameter, as `optimizer_shard` gives them."""
    return is_partitioned(parameter) or _is_mapped(parameter)


def gather_shards(shard: Shard) -> Tensor:
    """Put the parts of all ranks together, on the training device; all ranks call it together.

    A sum over ranks of tensors that are 0 outside the own part. Each element has one nonzero
    summand, so the result is exact and the same at every ZeRO stage. An all-gather would need equal
    sizes, which the shards of ZeRO-1 and ZeRO-2 do not have.
    """
    own = torch.zeros(shard.shape, dtype=shard.values.dtype, device=training_device())
    own.view(-1)[shard.start : shard.start + shard.values.numel()].copy_(shard.values)
    part = shard.part
    torch.distributed.all_reduce(own, group=None if part is None else part.group.data_group)
    return own if part is None else part.joined(own)


def release_gathered(tensor: Any) -> None:
    """Drop the gathered copy of a sharded tensor; the next forward pass gathers it again.

    DeepSpeed keeps small parameters gathered between forward passes, and with hpZ a second copy of
    all of them, spread over a node. After a change of the shards it would go on computing with
    these old copies.
    """
    if is_partitioned(tensor):
        tensor.partition()
        # Made again from the shards, after the next pass that gathers them.
        tensor.ds_secondary_tensor = None


def _place(tensor: Any) -> tuple[int, int]:
    """Start and length of this rank's part of a tensor that ZeRO-3 has sharded."""
    padded, part = tensor.ds_tensor.numel(), slice_of(tensor)
    start = (rank() if part is None else part.group.data_index) * padded
    # All parts have one size. If the ranks do not divide the elements, the last part is padded; if
    # there are fewer elements than ranks, the last parts are padding only.
    return start, min(padded, max(0, tensor.ds_numel - start))


def _is_mapped(parameter: Tensor) -> bool:
    return "_hp_mapping" in vars(parameter)
