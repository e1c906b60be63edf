"""Assertions on shapes and dtypes that show the expected and the found value."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def assert_floating(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Assert that `tensor` is floating point and has this shape."""
    fits = tensor.is_floating_point() and tuple(tensor.shape) == tuple(shape)
    assert fits, (
        f"{name} must be floating point {list(shape)}, not {tensor.dtype} {list(tensor.shape)}"
    )


def assert_token_tensors(mask: Tensor, **tensors: Tensor) -> None:
    """Assert that `mask` is bool [N] and that every named tensor is floating point [N]."""
    is_mask = mask.dim() == 1 and mask.dtype == torch.bool
    assert is_mask, f"mask must be torch.bool [N], not {mask.dtype} {list(mask.shape)}"
    for name, tensor in tensors.items():
        assert_floating(name, tensor, mask.shape)


def assert_integers(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Assert that `tensor` is int64 and has this shape."""
    fits = tensor.dtype == torch.int64 and tuple(tensor.shape) == tuple(shape)
    assert fits, (
        f"{name} must be torch.int64 {list(shape)}, not {tensor.dtype} {list(tensor.shape)}"
    )


def assert_flags(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Assert that `tensor` is bool and has this shape."""
    fits = tensor.dtype == torch.bool and tuple(tensor.shape) == tuple(shape)
    assert fits, f"{name} must be torch.bool {list(shape)}, not {tensor.dtype} {list(tensor.shape)}"


def assert_lengths(lengths: Tensor, num_entries: int, name: str = "lengths") -> None:
    """Assert that `lengths` is int64 [S], without negative entries, and sums to `num_entries`."""
    is_list = lengths.dim() == 1 and lengths.dtype == torch.int64
    assert is_list, f"{name} must be torch.int64 [S], not {lengths.dtype} {list(lengths.shape)}"
    assert not bool((lengths < 0).any()), f"{name} has negative entries: {lengths.tolist()}"
    total = int(lengths.sum())
    assert total == num_entries, f"{name} sums to {total}, not to the {num_entries} entries"


def assert_no_gradient(**tensors: Tensor) -> None:
    """Assert that every named tensor is a constant: a gradient through it would be wrong."""
    for name, tensor in tensors.items():
        assert not tensor.requires_grad, f"{name} requires a gradient; it must be a constant"
