"""Columns of numbers with a mask, drawn by hypothesis, with NaN off the mask."""

from __future__ import annotations

import itertools

import torch
from hypothesis import strategies as st
from torch import Tensor

F64 = torch.float64


def every(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.bool)


@st.composite
def columns(draw, count: int, low: float = -12.0, high: float = 12.0):
    """A mask and `count` columns; none, one and ties are likely."""
    mask = draw(st.lists(st.sampled_from([True, True, False]), max_size=7))
    number = st.sampled_from([0.0, 1.0]) | st.floats(low, high, allow_subnormal=False, width=32)
    return mask, *([draw(number) for _ in mask] for _ in range(count))


def poisoned(column: list[float], mask: list[bool]) -> Tensor:
    """[P] with NaN off the mask."""
    kept = torch.tensor(mask, dtype=torch.bool)
    return torch.where(kept, torch.tensor(column, dtype=F64), torch.nan)


def cuts(length: int, seed: int) -> list[tuple[int, int]]:
    """Some pieces of [0, length), empty ones among them: micro-batches of some ranks."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randint(0, length + 1, (3,), generator=generator).sort().values.tolist()
    return list(itertools.pairwise([0, *inner, length]))


def assert_close(found: Tensor, expected: list[float]) -> None:
    """Equal to 1e-9, with the dtype and shape of `expected` in float64."""
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), rtol=1e-9, atol=1e-9)
