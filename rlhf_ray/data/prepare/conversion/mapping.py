"""From rows to contents: what a mapping is, and how one row at a time becomes a content."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rlhf_ray.data.prepare.conversion.chats import BrokenChat
from rlhf_ray.data.prepare.conversion.contents import Content
from rlhf_ray.data.rows import BadCell, BrokenRow, Row, shown

BROKEN_ROW = "broken row"
BROKEN_CHAT = "broken conversation"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mapped:
    """A content and the row that it is from; `suffix` tells several of one row apart."""

    row: Row
    content: Content
    suffix: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unusable:
    """A row that gives nothing.

    Attributes:
        reason: BROKEN_ROW (its form is wrong: the mapping or the file is) or BROKEN_CHAT (its
            form is right and the conversation in it is not, as happens in every large set).
    """

    number: int
    where: str
    reason: str
    problem: str


Outcome = Mapped | Unusable
# Rows of one source to outcomes; the second argument is the kind that is asked for.
Mapping = Callable[[Iterable[Row | BrokenRow], str], Iterator[Outcome]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A ready mapping.

    Attributes:
        needs: columns without which nothing can be read; of each group one is enough.
    """

    needs: tuple[tuple[str, ...], ...]
    apply: Mapping


def by_row(read: Callable[[Row, str], Content]) -> Mapping:
    """A mapping that reads each row by itself; `read` raises BadCell or BrokenChat."""

    def apply(rows: Iterable[Row | BrokenRow], kind: str) -> Iterator[Outcome]:
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

    return apply


def broken_row(row: BrokenRow) -> Unusable:
    return Unusable(number=row.number, where=row.where, reason=BROKEN_ROW, problem=row.problem)


def unusable(row: Row, reason: str, problem: Exception | str) -> Unusable:
    return Unusable(number=row.number, where=row.where, reason=reason, problem=str(problem))


def text_in(row: Row, column: str) -> str:
    """A cell that must be text; an answer that is a number is its digits.

    Raises:
        BadCell: it is missing or something else.
    """
    if column not in row.cells:
        raise BadCell(f"has no column {column!r}, only {sorted(row.cells)}")
    value = row.cells[column]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise BadCell(f"column {column!r} must be text; it is {shown(value)}")
    return value


def number_in(row: Row, column: str) -> float | None:
    """A cell with a number, or with one in text as CSV has it; None where there is none.

    Raises:
        BadCell: it is something else.
    """
    value = row.cells.get(column)
    if value is None or value == "":
        return None
    return as_number(value, f"column {column!r}")


def as_number(value: Any, what: str) -> float:
    """A number, or text that is one.

    Raises:
        BadCell: it is something else, or not finite.
    """
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        if number - number != 0:  # inf and nan
            raise ValueError
    except (TypeError, ValueError):
        raise BadCell(f"{what} must be a number; it is {shown(value)}") from None
    return number
