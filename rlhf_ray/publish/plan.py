"""The plan of a transfer: which weight travels in which bucket, worked out alike by both ends.

No end has to tell the other where a bucket begins: both cut the same list of weights by the same
rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.publish.bucket import aligned, torch_dtype, unpack_flat

# Name, dtype (as "float32") and whole shape of a weight.
WeightSpec = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedBucket:
    """A bucket without its bytes; see `bucket.WeightBucket` for the fields.

    Attributes:
        num_bytes: bytes of its flat buffer.
    """

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    num_bytes: int

    def views(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors in `flat` [num_bytes] uint8, on its device."""
        return unpack_flat(flat, self.names, self.dtypes, self.shapes)


def plan_buckets(specs: Sequence[WeightSpec], bucket_bytes: int) -> tuple[PlannedBucket, ...]:
    """Cut weights into buckets, where `bucket.pack_buckets` would cut them.

    A tensor is never split, because vLLM loads whole tensors: a tensor larger than `bucket_bytes`
    gets a bucket of its size.
    """
    groups: list[list[WeightSpec]] = []
    ends: list[int] = []
    for spec in specs:
        size = math.prod(spec[2]) * torch_dtype(spec[1]).itemsize
        if not groups or aligned(ends[-1]) + size > bucket_bytes:
            groups.append([])
            ends.append(0)
        groups[-1].append(spec)
        ends[-1] = aligned(ends[-1]) + size
    return tuple(
        PlannedBucket(
            names=tuple(name for name, _, _ in group),
            dtypes=tuple(dtype for _, dtype, _ in group),
            shapes=tuple(tuple(shape) for _, _, shape in group),
            num_bytes=end,
        )
        for group, end in zip(groups, ends, strict=True)
    )


def fill(flat: Tensor, bucket: PlannedBucket, named: Iterator[tuple[str, Tensor]]) -> None:
    """Copy the next tensors of `named` into a bucket, each before the next is asked for.

    Args:
        flat [num_bytes] uint8: the bucket's buffer, on any device.

    Raises:
        RuntimeError: `named` gives another tensor than the plan has.
    """
    for name, place in bucket.views(flat):
        given, tensor = next(named, ("no more weights", None))
        if tensor is None or given != name or tensor.shape != place.shape:
            shape = None if tensor is None else tuple(tensor.shape)
            raise RuntimeError(
                f"the plan of the transfer has {name} {tuple(place.shape)} where the learner gives "
                f"{given} {shape}"
            )
        if tensor.dtype != place.dtype:
            # `copy_` would convert it without a word.
            raise RuntimeError(
                f"{name} is {tensor.dtype} in the learner and {place.dtype} in the plan"
            )
        place.copy_(tensor.detach())
        if flat.is_cuda:
            # DeepSpeed may free a gathered tensor on another stream, while this copy still reads.
            torch.cuda.current_stream(flat.device).synchronize()
