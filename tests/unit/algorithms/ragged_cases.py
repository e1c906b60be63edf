"""Ragged samples with holes, drawn by hypothesis, and their flat form."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

F64 = torch.float64


def flat(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor([x for row in rows for x in row], dtype=F64)


def flat_mask(rows: list[list[bool]]) -> torch.Tensor:
    return torch.tensor([keep for row in rows for keep in row], dtype=torch.bool)


def sizes(rows: list[list]) -> torch.Tensor:
    return torch.tensor([len(row) for row in rows], dtype=torch.int64)


def poisoned(rows: list[list[float]], mask: torch.Tensor) -> torch.Tensor:
    """The flat rows with NaN off the mask."""
    return torch.where(mask, flat(rows), torch.nan)


def sampled(row: list[float], mask: list[bool]) -> list[float]:
    return [x for x, keep in zip(row, mask, strict=True) if keep]


@st.composite
def samples(draw, columns: int, low: float = -3.0, high: float = 3.0):
    """Masks, and as many columns of numbers of the same shape; empty samples are among them."""
    masks = draw(st.lists(st.lists(st.booleans(), max_size=6), min_size=1, max_size=5))
    number = st.floats(low, high, allow_subnormal=False, width=32)
    return masks, *([[draw(number) for _ in mask] for mask in masks] for _ in range(columns))


@st.composite
def groups(draw, low: float = -3.0):
    """Rewards of some groups; ties and groups of one are likely."""
    number = st.sampled_from([0.0, 1.0, 1.0, 0.5]) | st.floats(low, 3, allow_subnormal=False)
    return draw(st.lists(st.lists(number, min_size=1, max_size=6), min_size=1, max_size=4))
