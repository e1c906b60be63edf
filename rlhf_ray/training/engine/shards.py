"""The part of a tensor that this rank holds, whatever the ZeRO stage. Needs no DeepSpeed.

Reads what DeepSpeed 0.19.8 writes on the parameters that it shards: `ds_id`, `ds_shape`,
`ds_numel`, `ds_tensor` and `_z3_optimizer` (ZeRO-3), and `_hp_mapping` (ZeRO-1, ZeRO-2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_ray.training.engine.ranks import rank, reduce_over_ranks, training_device


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A stretch of a flattened tensor.

    Attributes:
        values [n]: the memory itself, without padding: what is written here is the weight.
        start: where it begins in the whole.
        shape: of the whole tensor.
    """

    values: Tensor
    start: int
    shape: tuple[int, ...]

    def of(self, whole: Tensor) -> Tensor:
        """The same stretch [n] of another tensor of that shape."""
        return whole.reshape(-1)[self.start : self.start + self.values.numel()]


def is_partitioned(tensor: Tensor) -> bool:
    """ZeRO-3 has sharded it."""
    return "ds_id" in vars(tensor)


def num_elements(tensor: Any) -> int:
    """Elements of the whole tensor, also of one that ZeRO-3 has sharded."""
    return tensor.ds_numel if is_partitioned(tensor) else tensor.numel()


def whole_shape(tensor: Any) -> tuple[int, ...]:
    """Shape of the whole tensor, also of one that ZeRO-3 has sharded."""
    return tuple(tensor.ds_shape if is_partitioned(tensor) else tensor.shape)


def weight_shard(tensor: Any) -> Shard:
    """What this rank holds of a weight, in the weight's own number format."""
    if not is_partitioned(tensor):
        return Shard(values=tensor.data.view(-1), start=0, shape=tuple(tensor.shape))
    start, length = _place(tensor)
    values = tensor.ds_tensor.data[:length]
    return Shard(values=values, start=start, shape=whole_shape(tensor))


def optimizer_shard(parameter: Any) -> Shard:
    """What this rank's optimizer holds of a trained parameter, in float32.

    The whole without ZeRO, an empty stretch where another rank has all of it. Weights that the
    optimizer keeps in host memory may be a copy: only read them.
    """
    shape = whole_shape(parameter)
    if is_partitioned(parameter):
        start, length = _place(parameter)
        values = parameter._z3_optimizer.get_local_fp32_param(parameter)
        return Shard(values=values.view(-1)[:length], start=start, shape=shape)
    if not _is_mapped(parameter):
        return Shard(values=parameter.data.view(-1), start=0, shape=shape)
    fragment = parameter._hp_mapping
    if fragment is None:
        nothing = torch.empty(0, device=parameter.device)
        return Shard(values=nothing, start=0, shape=shape)
    start = fragment.lp_fragment_address.start
    return Shard(values=fragment.hp_fragment.data, start=start, shape=shape)


def is_spread(parameter: Tensor) -> bool:
    """Ranks hold different parts of it, as `optimizer_shard` gives them."""
    return is_partitioned(parameter) or _is_mapped(parameter)


def gather_shards(shard: Shard) -> Tensor:
    """The whole tensor, on the training device, of the parts of all ranks, which call it together.

    A sum of parts that are 0 elsewhere: exact, and the same whatever the ZeRO stage.
    """
    whole = torch.zeros(shard.shape, dtype=shard.values.dtype, device=training_device())
    whole.view(-1)[shard.start : shard.start + shard.values.numel()].copy_(shard.values)
    return reduce_over_ranks(whole)


def release_gathered(tensor: Any) -> None:
    """Forget a whole copy of a sharded tensor, which the next forward pass makes again.

    DeepSpeed keeps small parameters whole between forward passes, and would go on computing with
    that copy when the shards have changed.
    """
    if is_partitioned(tensor):
        tensor.partition()


def _place(tensor: Any) -> tuple[int, int]:
    """Start and length of this rank's part of what ZeRO-3 has sharded."""
    padded = tensor.ds_tensor.numel()
    start = rank() * padded
    # The last ranks' parts are padded to the size of the others.
    return start, min(padded, max(0, tensor.ds_numel - start))


def _is_mapped(parameter: Tensor) -> bool:
    return "_hp_mapping" in vars(parameter)
