"""Rows of a source, before their columns are interpreted, and errors about them."""

from __future__ import annotations

import datetime
import decimal
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.data import DataConfig, SourceConfig
from rlhf_ray.config.keys.listing import there_are
from rlhf_ray.data.foreign_columns import foreign_hint
from rlhf_ray.data.scalars import WrittenFloat, number_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row: `cells` by column, `number` counted from 0, and `where` for messages."""

    number: int
    where: str
    cells: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokenRow:
    """A row that could not be parsed; the reader decides whether it ends the run."""

    number: int
    where: str
    problem: str


def row_from(value: Any, *, number: int, where: str) -> Row | BrokenRow:
    """Make a row of `value` if it is an object with columns."""
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return Row(number=number, where=where, cells=value)
    return BrokenRow(
        number=number, where=where, problem=f"is not an object with columns but {shown(value)}"
    )


def shown(value: Any, limit: int = 80) -> str:
    """Format a value for a message: its type, and the value cut to `limit` characters."""
    # A slice before `repr`: a value may be a text of megabytes.
    is_text = isinstance(value, str | bytes)
    try:
        text = repr(value[: limit + 1] if is_text else value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits; too deep
        text = "a value that is too long to show"
    if len(text) > limit:
        text = text[:limit] + "..."
    kind = float if isinstance(value, WrittenFloat) else type(value)
    return f"{text} ({kind.__name__})"


class BadCell(ValueError):  # noqa: N818 - it reads as a sentence where it is raised
    """A cell of one row cannot be used; the message names the column and shows the value.

    The caller puts file and line in front and `on_bad_row` behind; see `Rejects.bad_row`.
    """


def check_columns(
    source: SourceConfig, columns: Mapping[str, str | None], rows: Iterable[Row]
) -> None:
    """Refuse a configured column that no row has.

    Args:
        columns: configured column of each key of the source; None if not configured.

    Raises:
        DataError: names the key, the column and the existing columns, the nearest name first.
    """
    check_known_columns(source, columns, {name for row in rows for name in row.cells})


def check_known_columns(
    source: SourceConfig, columns: Mapping[str, str | None], known: Set[str]
) -> None:
    """Like `check_columns`, for rows with these columns."""
    for key, column in columns.items():
        if column is not None and column not in known:
            raise DataError(
                f"{source.key(key)} is {column!r}, and {source.path} has no such column; "
                f"{known_names(column, known)}{foreign_hint(source, [{key: column}], known)}"
            )


def text_cell(row: Row, column: str) -> str:
    """Read a cell that is text or a number, as text.

    Raises:
        BadCell: the cell is missing, null, or of another type.
    """
    value = cell(row, column)
    if value is None:
        raise no_value(column, "text or a number")
    if isinstance(value, bool) or not isinstance(value, str | int | float | decimal.Decimal):
        raise BadCell(f"column {column!r} must be text or a number; it is {shown(value)}")
    if isinstance(value, float | decimal.Decimal) and not math.isfinite(value):
        raise BadCell(f"column {column!r} must be text or a finite number; it is {shown(value)}")
    return value if isinstance(value, str) else number_text(value)


# The beginning of a list of messages in JSON, or as Python writes it.
_WRITTEN_CHAT = re.compile(
    r"""\s*\[\s*\{\s*(['"]role['"]\s*:\s*['"](system|developer|user|assistant)['"]"""
    r"""|['"]content['"]\s*:.*['"]role['"]\s*:)""",
    re.DOTALL,
)


def refuse_written_chat(text: str, column: str) -> None:
    """Refuse a chat that was written as text, as in CSV, which has no lists.

    Raises:
        BadCell: the text begins as a list of messages does.
    """
    if _WRITTEN_CHAT.match(text):
        raise BadCell(
            f"column {column!r} is a chat that was written as text, which would be one message; "
            f"write JSON lines, which have lists: {shown(text)}"
        )


def no_value(column: str, wanted: str) -> BadCell:
    """The error that a cell is null."""
    return BadCell(
        f"column {column!r} must be {wanted}; it is null. In CSV the cells NA, None, null and nan "
        "are null, too: write JSON lines for texts such as these"
    )


def cell(row: Row, column: str) -> Any:
    """Read a cell.

    Raises:
        BadCell: this row has no such column.
    """
    if column not in row.cells:
        raise BadCell(f"the row has no column {column!r}, only {sorted(row.cells)}")
    return row.cells[column]


def unmapped_columns(data: DataConfig, row: Row) -> tuple[dict[str, Any], set[str]]:
    """Unmapped columns with plain JSON values, and the names of unmapped columns without.

    Dates and decimal numbers become text. Other values (bytes, images) are left out, because every
    column goes to every reward worker and into every rollout file.
    """
    mapped = {data.prompt_column, data.answer_column, data.source_column, data.id_column}
    plain: dict[str, Any] = {}
    left_out: set[str] = set()
    for name, value in row.cells.items():
        if name in mapped:
            continue
        try:
            plain[name] = _plain(value)
        except TypeError:
            left_out.add(name)
    return plain, left_out


def _plain(value: Any) -> Any:
    if isinstance(value, WrittenFloat):
        return float(value)
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, datetime.date | datetime.time | decimal.Decimal):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    raise TypeError(type(value).__name__)


_MAX_NAMES = 12


class DataError(RequestError):
    """Rows cannot be read as configured; the message says where and what to change."""


def known_names(name: str, known: Iterable[str]) -> str:
    """Format the known names for a message about the unknown `name`, the nearest first."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    listed = ", ".join(names[:_MAX_NAMES]) or "none"
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    hint = f"did you mean {close[0]!r}? " if close else ""
    outer, dot, inner = name.partition(".")
    if dot and outer in names:
        # As in the files of verl: reward_model.ground_truth.
        hint = (
            f"nested columns are not read: {inner!r} in {outer!r} has to be a column of its own, "
            f"by datasets' `flatten()` or when the file is written. "
        )
    return there_are(hint, f"{listed}{more}")
