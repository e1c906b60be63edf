"""Shapes that the records require of their tensors, refused with a ValueError."""

from __future__ import annotations

from collections.abc import Sequence, Sized

from torch import Tensor


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """A tensor of exactly this shape."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {shape}")


def check_lengths(lengths: Tensor, num_tokens: int) -> None:
    """Lengths [S] that cover all tokens."""
    if int(lengths.sum()) != num_tokens:
        raise ValueError(f"lengths sum to {int(lengths.sum())}, not {num_tokens} tokens")


def check_kept(kept_token_ids: Tensor, num_tokens: int) -> None:
    """A row of kept tokens for every token, of any width."""
    shape = tuple(kept_token_ids.shape)
    if len(shape) != 2 or shape[0] != num_tokens:
        raise ValueError(f"kept_token_ids has shape {shape}, not ({num_tokens}, K)")


def check_steps(
    text_ends: Tensor, step_rewards: Tensor, step_ends: Tensor, num_tokens: int
) -> None:
    """Entries for every token or none at all; rewards of steps and their ends together."""
    if text_ends.shape[0]:
        check_shape("text_ends", text_ends, (num_tokens,))
    if step_ends.shape[0] or step_rewards.shape[0]:
        check_shape("step_ends", step_ends, (num_tokens,))
        check_shape("step_rewards", step_rewards, (num_tokens,))


def check_count(name: str, items: Sized, count: int) -> None:
    """As many items as there are samples."""
    if len(items) != count:
        raise ValueError(f"{name} has {len(items)} entries, not {count}")


def check_micro_batches(micro_batches: Sequence[Sequence[int]], num_samples: int) -> None:
    """Every sample in exactly one of them."""
    rows = sorted(row for batch in micro_batches for row in batch)
    if rows != list(range(num_samples)):
        raise ValueError("micro_batches must contain every sample exactly once")
