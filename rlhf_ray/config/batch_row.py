"""One line of the batch table."""

from __future__ import annotations

from typing import NamedTuple


class BatchRow(NamedTuple):
    """What it is, its value, and how it is computed from the keys."""

    name: str
    value: str
    computed_from: str


def row(name: str, value: int, computed_from: str) -> BatchRow:
    return BatchRow(name, f"{value:,}", computed_from)


def ceil(whole: int, parts: int) -> int:
    """The quotient, rounded up."""
    return -(-whole // parts)
