"""Records on their way between processes.

Torch copies the bytes of a tensor into the pickle, and pickles the whole memory behind a slice of
it. A numpy array is pickled out of band: Ray's object store takes its memory as it is. So tensors
of records travel as arrays. The receiver copies them once, because memory of the object store is
read-only, and a write to a tensor over it would end the process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

# Numpy has no other dtypes of torch, such as bfloat16; those travel as torch pickles them.
_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_DTYPES = frozenset((*_INTEGERS, torch.float16, torch.float32, torch.float64))


class TravellingRecord:
    """Base of the dataclasses whose tensors travel as arrays.

    Tensors are found in fields, and in dictionaries that are fields. Records in fields are on
    their own. As with other dataclasses, the checks of a record do not run again on arrival.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # A tensor of two fields travels once: pickle knows an object again.
        packed: dict[int, Any] = {}
        fields = dataclasses.fields(cast(Any, self))
        values = (_packed(getattr(self, field.name), packed) for field in fields)
        return _restored, (type(self), *values)


def _restored(record_type: type[Any], *values: Any) -> Any:
    record = object.__new__(record_type)
    for field, value in zip(dataclasses.fields(record_type), values, strict=True):
        object.__setattr__(record, field.name, value)
    return record


class _Array:
    """A tensor as an array; it arrives as a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self._array = tensor.detach().contiguous().numpy()

    def __reduce__(self) -> tuple[Callable[[np.ndarray], Tensor], tuple[np.ndarray]]:
        return torch.tensor, (self._array,)


def _packed(value: Any, known: dict[int, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _packed(item, known) for key, item in value.items()}
    if not isinstance(value, Tensor) or value.dtype not in _DTYPES or value.device.type != "cpu":
        return value
    if id(value) not in known:
        known[id(value)] = _Array(value)
    return known[id(value)]
