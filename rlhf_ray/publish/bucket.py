"""Weight buckets: many tensors packed into one flat buffer of bounded size."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Every tensor starts at a multiple of this, so that a view of any dtype is aligned.
ALIGNMENT_BYTES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightBucket:
    """Some weights of a model, one after the other in one buffer.

    `data` is a numpy array and not a tensor, because Ray's object store passes numpy arrays
    without a copy: the receiver sees the store's memory, read-only.

    Attributes:
        names [T]: Hugging Face names.
        dtypes [T]: names of torch dtypes, "float32" or "bfloat16".
        shapes [T]: shapes of the whole, unsharded tensors.
        data [bytes] uint8: the tensors at `offsets(self)`, each contiguous.
    """

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    data: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.dtypes) == len(self.shapes):
            raise ValueError(
                f"{len(self.names)} names, {len(self.dtypes)} dtypes and "
                f"{len(self.shapes)} shapes do not describe the same tensors"
            )
        if self.data.dtype != np.uint8 or self.data.ndim != 1:
            raise ValueError(
                f"data must be a flat uint8 array, not {self.data.dtype} {self.data.shape}"
            )

    @property
    def num_bytes(self) -> int:
        return self.data.shape[0]


def offsets(dtypes: Iterable[str], shapes: Iterable[tuple[int, ...]]) -> Iterator[tuple[int, int]]:
    """Place of each tensor in the buffer: (first byte, number of bytes)."""
    start = 0
    for dtype, shape in zip(dtypes, shapes, strict=True):
        size = math.prod(shape) * torch_dtype(dtype).itemsize
        yield start, size
        start = aligned(start + size)


def pack_buckets(
    named_weights: Iterable[tuple[str, Tensor]],
    bucket_bytes: int,
    buffer: np.ndarray | None = None,
) -> Iterator[WeightBucket]:
    """Copy tensors, each once, into buckets of at most `bucket_bytes`.

    A tensor is never split; a tensor larger than `bucket_bytes` gets a bucket of its size. Each
    tensor is copied before the next is asked for, so that the source may free it.

    Args:
        named_weights: names and tensors, on any device, of any layout.
        buffer: flat uint8 memory of at least `bucket_bytes` that all buckets use in turn: a
            bucket is then valid only until the next is asked for. Memory that was used before
            is several times as fast to fill. None allocates new memory for each bucket.

    Raises:
        ValueError: `buffer` is too small.
    """
    if buffer is not None and buffer.shape[0] < bucket_bytes:
        raise ValueError(f"the buffer has {buffer.shape[0]} bytes, a bucket {bucket_bytes}")
    bucket = _OpenBucket(bucket_bytes, buffer)
    for name, tensor in named_weights:
        if not bucket.has_room(tensor.nbytes):
            yield bucket.close()
            bucket = _OpenBucket(bucket_bytes, buffer)
        bucket.add(name, tensor)
    if bucket.names:
        yield bucket.close()


def unpack(bucket: WeightBucket) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a bucket. The tensors are views of its buffer: do not write to them."""
    with warnings.catch_warnings():
        # Memory of the object store is read-only. Torch has no read-only tensors and warns.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        flat = torch.from_numpy(bucket.data)
    yield from unpack_flat(flat, bucket.names, bucket.dtypes, bucket.shapes)


def unpack_flat(
    flat: Tensor,
    names: Iterable[str],
    dtypes: Iterable[str],
    shapes: Iterable[tuple[int, ...]],
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors from the parts of a bucket; `flat` [bytes] uint8 is its data."""
    dtypes, shapes = tuple(dtypes), tuple(shapes)
    places = offsets(dtypes, shapes)
    for name, dtype, shape, (start, size) in zip(names, dtypes, shapes, places, strict=True):
        yield name, flat[start : start + size].view(torch_dtype(dtype)).view(shape)


def torch_dtype(name: str) -> torch.dtype:
    """The dtype that prints as `torch.NAME`.

    Raises:
        ValueError: torch has no such dtype.
    """
    dtype = torch.__dict__.get(name)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is not the name of a torch dtype")
    return dtype


class _OpenBucket:
    """A bucket that still takes tensors."""

    def __init__(self, bucket_bytes: int, buffer: np.ndarray | None) -> None:
        self._capacity = bucket_bytes
        self._buffer = buffer
        self._used = 0
        self.names: list[str] = []
        self._dtypes: list[str] = []
        self._shapes: list[tuple[int, ...]] = []

    def has_room(self, num_bytes: int) -> bool:
        # An empty bucket takes a tensor of any size: a tensor is never split.
        return not self.names or aligned(self._used) + num_bytes <= self._capacity

    def add(self, name: str, tensor: Tensor) -> None:
        start = aligned(self._used)
        end = start + tensor.nbytes
        if self._buffer is None or end > self._buffer.shape[0]:
            # New memory: no buffer was lent, or the first tensor is larger than a bucket.
            # Only the first can be, because `has_room` refuses later ones.
            assert not self.names, f"{name} does not fit, but has_room said so"
            self._buffer = np.empty(max(self._capacity, end), dtype=np.uint8)
        # View the bytes as the tensor's dtype and shape: `copy_` then copies from any device and
        # makes transposed weights contiguous, in one pass and without a temporary.
        target = torch.from_numpy(self._buffer[start:end]).view(tensor.dtype).view(tensor.shape)
        target.copy_(tensor.detach())
        self.names.append(name)
        self._dtypes.append(str(tensor.dtype).removeprefix("torch."))
        self._shapes.append(tuple(tensor.shape))
        self._used = end

    def close(self) -> WeightBucket:
        assert self._buffer is not None
        return WeightBucket(
            names=tuple(self.names),
            dtypes=tuple(self._dtypes),
            shapes=tuple(self._shapes),
            data=self._buffer[: self._used],
        )


def aligned(num_bytes: int) -> int:
    """The next multiple of `ALIGNMENT_BYTES`."""
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
