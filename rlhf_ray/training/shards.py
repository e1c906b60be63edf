"""The part of a tensor that this rank holds, whatever the ZeRO stage. Needs no DeepSpeed.

Reads what DeepSpeed 0.19.8 writes on the parameters that it shards: `ds_id`, `ds_shape`,
`ds_numel` and `ds_tensor` (ZeRO-3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rlhf_ray.training.ranks import rank


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
    part = tensor.ds_tensor.data
    start = rank() * part.numel()
    # The last ranks' parts are padded to the size of the others.
    length = min(part.numel(), max(0, tensor.ds_numel - start))
    return Shard(values=part[:length], start=start, shape=tuple(tensor.ds_shape))


def release_gathered(tensor: Any) -> None:
    """Forget a whole copy of a sharded tensor, which the next forward pass makes again.

    DeepSpeed keeps small parameters whole between forward passes, and would go on computing with
    that copy when the shards have changed.
    """
    if is_partitioned(tensor):
        tensor.partition()
