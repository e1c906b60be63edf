"""Checks of the records' tensors; each raises a ValueError that names the field."""

from __future__ import annotations

from collections.abc import Sequence, Sized

from torch import Tensor


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Require exactly this shape."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {shape}")


def check_lengths(lengths: Tensor, num_tokens: int) -> None:
    """Require lengths [S] that add up to the number of tokens."""
    if int(lengths.sum()) != num_tokens:
        raise ValueError(f"lengths sum to {int(lengths.sum())}, not {num_tokens} tokens")


def check_support(support_token_ids: Tensor | None, num_tokens: int) -> None:
    """Require one row per token, of any width; None is the whole vocabulary."""
    if support_token_ids is None:
        return
    shape = tuple(support_token_ids.shape)
    if len(shape) != 2 or shape[0] != num_tokens:
        raise ValueError(f"support_token_ids has shape {shape}, not ({num_tokens}, K)")


def check_count(name: str, items: Sized, count: int) -> None:
    """Require one item per sample."""
    if len(items) != count:
        raise ValueError(f"{name} has {len(items)} entries, not {count}")


def check_micro_batches(micro_batches: Sequence[Sequence[int]], num_samples: int) -> None:
    """Require every sample in exactly one micro-batch."""
    rows = sorted(row for batch in micro_batches for row in batch)
    if rows != list(range(num_samples)):
        raise ValueError("micro_batches must contain every sample exactly once")
