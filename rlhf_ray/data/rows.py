"""Rows as they come out of a source, before anybody knows what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row: `cells` by column, `number` counted from 0, and `where` for messages."""

    number: int
    where: str
    cells: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokenRow:
    """A row that is no row; whether that ends the run is the reader's decision."""

    number: int
    where: str
    problem: str


def row_from(value: Any, *, number: int, where: str) -> Row | BrokenRow:
    """A row if `value` is an object with columns."""
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return Row(number=number, where=where, cells=value)
    return BrokenRow(
        number=number, where=where, problem=f"is not an object with columns but {shown(value)}"
    )


def shown(value: Any, limit: int = 80) -> str:
    """A value for a message: its type and as much of it as fits."""
    text = repr(value)
    if len(text) > limit:
        text = text[:limit] + "..."
    return f"{text} ({type(value).__name__})"
