"""Counts of what is learnt otherwise than a row says it, though the row is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from rlhf_ray.data.rows import Row
from rlhf_ray.data.scalars import number_text

# Columns of every row that stage=prepare_data writes: they name the row and say nothing else.
_NAMES_OF_ROWS = frozenset(("id", "task", "source"))
_MAX_COLUMNS = 12


@dataclass(slots=True)
class RowNotes:
    """Counts of rows by note, each with the place of the first."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, where: str, notes: Iterable[str]) -> None:
        """Count a row once for each of its notes."""
        for note in dict.fromkeys(notes):
            self.counts[note] = self.counts.get(note, 0) + 1
            self.first.setdefault(note, where)

    def lines(self) -> tuple[str, ...]:
        """Lines for the screen, in the order in which the notes first occurred."""
        return tuple(self._lines())

    def _lines(self) -> Iterator[str]:
        for note, count in self.counts.items():
            yield f"{note}: {count} rows (first: {self.first[note]})"


def number_note(row: Row, column: str | None) -> tuple[str, ...]:
    """The note on an answer of Arrow that is a fraction, so that its digits are not known.

    Whole numbers are written alike everywhere, as far as floats hold them exactly.
    """
    value = row.cells.get(column) if column else None
    if not isinstance(value, float) or number_text(value).lstrip("-").isdigit():
        return ()
    return (
        f"column {column!r} is a number, and was perhaps written with other digits (0.10 is 0.1 "
        f"here); store answers as text",
    )


class UnreadColumns:
    """Counts values of columns that are not read.

    Args:
        read: names of the columns that are read.
    """

    def __init__(self, read: Iterable[str | None]) -> None:
        self._known = {*read} | _NAMES_OF_ROWS
        self._counts: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        """Count the values of a row."""
        self._counts.update(
            name
            for name, value in row.cells.items()
            if name not in self._known and value is not None and value != ""
        )

    def lines(self, what: str) -> list[str]:
        """Line for the screen that begins with `what`; none if all columns are read."""
        if not self._counts:
            return []
        most = self._counts.most_common(_MAX_COLUMNS)
        named = [f"{name!r} ({count} rows)" for name, count in most]
        more = len(self._counts) - len(named)
        return [f"{what}: {', '.join(named)}{f' and {more} more' if more else ''}"]


def unread_columns(rows: Iterable[Row], read: Iterable[str | None], *, what: str) -> list[str]:
    """`UnreadColumns.lines` of all these rows."""
    unread = UnreadColumns(read)
    for row in rows:
        unread.add(row)
    return unread.lines(what)
