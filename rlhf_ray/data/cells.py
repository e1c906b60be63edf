"""Single cells: what an answer, an id, a task's name and a further column may be."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterable, Mapping
from typing import Any

from rlhf_ray.config.groups.data import DataConfig
from rlhf_ray.config.source import SourceConfig
from rlhf_ray.data.errors import DataError, among
from rlhf_ray.data.rows import Row, shown


class BadCell(ValueError):  # noqa: N818 - it reads as a sentence where it is raised
    """A cell of one row cannot be used; the message names the column and shows the value."""


def check_columns(
    source: SourceConfig, columns: Mapping[str, str | None], rows: Iterable[Row]
) -> None:
    """Refuse a mapping to columns that no row has.

    Args:
        columns: key of the source to the column that it names, None where it names none.

    Raises:
        DataError: with the columns that there are, the nearest name first.
    """
    known = {name for row in rows for name in row.cells}
    for key, column in columns.items():
        if column is not None and column not in known:
            raise DataError(
                f"{source.key(key)} is {column!r}, and {source.path} has no such column; "
                f"{among(column, known)}"
            )


def text_cell(row: Row, column: str) -> str:
    """A cell that is text or a number, as text.

    Raises:
        BadCell: it is missing, null, or something else.
    """
    value = cell(row, column)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadCell(f"column {column!r} must be text or a number; it is {shown(value)}")
    return str(value)


def cell(row: Row, column: str) -> Any:
    """The value of a cell.

    Raises:
        BadCell: this row has no such column.
    """
    if column not in row.cells:
        raise BadCell(f"has no column {column!r}, only {sorted(row.cells)}")
    return row.cells[column]


def other_columns(data: DataConfig, row: Row) -> tuple[dict[str, Any], set[str]]:
    """The columns that nothing is mapped to, as plain JSON values, and the names of the rest.

    Dates and decimal numbers become text. What is no plain value (bytes, images) is left out: it
    must travel to every reward worker and into every rollout file.
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
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, datetime.date | datetime.time | decimal.Decimal):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    raise TypeError(type(value).__name__)
