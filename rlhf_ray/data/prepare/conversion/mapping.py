"""Mappings from rows to contents, and readers of single cells."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rlhf_ray.data.prepare.conversion.chats import BrokenChat
from rlhf_ray.data.prepare.conversion.contents import Content
from rlhf_ray.data.rows import BadCell, BrokenRow, Row, refuse_written_chat, shown
from rlhf_ray.data.scalars import number_text

BROKEN_ROW = "broken row"
BROKEN_CHAT = "broken conversation"
NOT_BETTER = "chosen not better"

_PLAIN = re.compile(r"\s*[-+]?[0-9.]+([eE][-+]?[0-9]+)?\s*")


class NotBetter(ValueError):  # noqa: N818 - it reads as a sentence where it is raised
    """The scores of a row do not say that the chosen answer is better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mapped:
    """A content and its row; `suffix` distinguishes several contents of one row."""

    row: Row
    content: Content
    suffix: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unusable:
    """A row without a usable content.

    Attributes:
        reason: BROKEN_ROW (the form is wrong, so the mapping or the file is wrong), BROKEN_CHAT
            (the form is right but the conversation is not, as happens in every large set) or
            NOT_BETTER (the scores do not put one answer above the other).
    """

    number: int
    where: str
    reason: str
    problem: str


RowOutcome = Mapped | Unusable
# From the rows of one source to outcomes; the second argument is the requested kind.
RowMapping = Callable[[Iterable[Row | BrokenRow], str], Iterator[RowOutcome]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A mapping and the columns that it needs.

    Attributes:
        needs: groups of columns; one column of each group must exist.
        reads: further columns that it reads; all others are left out and counted.
        numbers: columns that are read as numbers, and not as text.
    """

    needs: tuple[tuple[str, ...], ...]
    apply: RowMapping
    reads: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()

    def texts_of(self, more: Iterable[str]) -> tuple[str, ...]:
        """The columns that may be read as text.

        Args:
            more: columns that others read.
        """
        read = (*(column for group in self.needs for column in group), *self.reads, *more)
        return tuple(column for column in dict.fromkeys(read) if column not in self.numbers)

    def left_out(self, row: Row, more: Iterable[str]) -> tuple[str, ...]:
        """The columns of a row with a value that the layout does not read.

        Args:
            more: columns that others read.
        """
        read = {*self.reads, *more, *(column for group in self.needs for column in group)}
        return tuple(
            name
            for name, value in row.cells.items()
            if name not in read and value is not None and value != ""
        )


def by_row(read: Callable[[Row, str], Content]) -> RowMapping:
    """Make a mapping that reads each row by itself; `read` raises BadCell or BrokenChat."""

    def apply(rows: Iterable[Row | BrokenRow], kind: str) -> Iterator[RowOutcome]:
        for row in rows:
            if isinstance(row, BrokenRow):
                yield broken_row(row)
                continue
            try:
                yield Mapped(row=row, content=read(row, kind))
            except BadCell as error:
                yield unusable(row, BROKEN_ROW, error)
            except BrokenChat as error:
                yield unusable(row, BROKEN_CHAT, error)
            except NotBetter as error:
                yield unusable(row, NOT_BETTER, error)

    return apply


def broken_row(row: BrokenRow) -> Unusable:
    return Unusable(number=row.number, where=row.where, reason=BROKEN_ROW, problem=row.problem)


def unusable(row: Row, reason: str, problem: Exception | str) -> Unusable:
    return Unusable(number=row.number, where=row.where, reason=reason, problem=str(problem))


def text_in(row: Row, column: str) -> str:
    """Read a cell as text; a number becomes its digits.

    Raises:
        BadCell: the cell is missing or neither text nor a number.
    """
    if column not in row.cells:
        raise BadCell(f"the row has no column {column!r}, only {sorted(row.cells)}")
    value = row.cells[column]
    if isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            raise BadCell(f"column {column!r} must be a finite number; it is {shown(value)}")
        return number_text(value)
    if not isinstance(value, str):
        raise BadCell(f"column {column!r} must be text or a number; it is {shown(value)}")
    return value


def said_in(row: Row, column: str) -> str:
    """Read a cell as the text of one message.

    Raises:
        BadCell: see `text_in`; or the cell is a whole chat that was written as text.
    """
    text = text_in(row, column)
    refuse_written_chat(text, column)
    return text


def number_in(row: Row, column: str) -> float | None:
    """Read a cell as a number, also from text as in CSV; None if it is empty, missing or NaN.

    Pandas writes a missing number as NaN.

    Raises:
        BadCell: the cell is not a number.
    """
    value = row.cells.get(column)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    return as_number(value, f"column {column!r}")


def as_number(value: Any, what: str) -> float:
    """Convert a value to a finite number.

    Raises:
        BadCell: the value is not a number, or is not finite.
    """
    try:
        # Python also reads 1_000 and other digits than 0 to 9.
        if isinstance(value, bool) or (isinstance(value, str) and not _PLAIN.fullmatch(value)):
            raise ValueError
        number = float(value)
        if number - number != 0:  # inf and nan
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise BadCell(f"{what} must be a finite number; it is {shown(value)}") from None
    return number
