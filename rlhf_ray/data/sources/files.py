"""Rows from JSON lines, JSON, CSV and Parquet files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from rlhf_ray.data.rows import BrokenRow, DataError, Row, row_from, shown

_MAX_CELL_CHARACTERS = 2**27
_PARQUET_BATCH_ROWS = 1024


def read_jsonl(path: Path) -> Iterator[Row | BrokenRow]:
    """Read one JSON object per line; skip blank lines. Messages count lines from 1."""
    number = 0
    # Bytes: a line that is not UTF-8 is one broken row, not the end of the file.
    with path.open("rb") as file:
        for line_number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path.name} line {line_number}"
            try:
                yield row_from(
                    json.loads(line.decode("utf-8-sig").strip()), number=number, where=where
                )
            except json.JSONDecodeError as error:
                problem = f"is not JSON: {error.msg} at column {error.colno}"
                yield BrokenRow(number=number, where=where, problem=problem)
            except UnicodeDecodeError as error:
                problem = f"is not UTF-8: {error.reason} at byte {error.start}"
                yield BrokenRow(number=number, where=where, problem=problem)
            number += 1


def read_json(path: Path, *, format_key: str) -> Iterator[Row | BrokenRow]:
    """Read a list of objects, or an object with such a list as its field `data`.

    Args:
        format_key: dotted name of the setting of the file's format.

    Raises:
        DataError: the file is not JSON, or holds no list of objects.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        hint = ""
        if error.msg == "Extra data":
            hint = f"; if every line is one object, set {format_key}=jsonl"
        raise DataError(
            f"{path} line {error.lineno} column {error.colno} is not JSON: {error.msg}{hint}"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise DataError(
            f"{path} must hold a list of objects, or an object with such a list as `data`; "
            f"it holds {shown(content)}"
        )
    for number, value in enumerate(rows):
        yield row_from(value, number=number, where=f"{path.name} row {number + 1}")


def read_csv(path: Path) -> Iterator[Row | BrokenRow]:
    """Read comma-separated values under a header line; cells stay text, so that 007 is not 7.

    Raises:
        DataError: the file is not UTF-8, or the header has an empty or repeated name.
    """
    csv.field_size_limit(_MAX_CELL_CHARACTERS)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from _csv_rows(path, csv.reader(file, strict=True))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error


def _csv_rows(path: Path, reader: Iterator[list[str]]) -> Iterator[Row | BrokenRow]:
    number = 0
    header: list[str] | None = None
    while True:
        # A record may span several lines; messages name the first one.
        where = f"{path.name} line {reader.line_num + 1}"  # type: ignore[attr-defined]
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise DataError(f"{where}, the header, is broken: {error}") from error
            yield BrokenRow(number=number, where=where, problem=f"is broken: {error}")
            number += 1
            continue
        if header is None:
            header = _checked_header(path, cells)
        elif cells:
            if len(cells) == len(header):
                named = dict(zip(header, cells, strict=True))
                yield Row(number=number, where=where, cells=named)
            else:
                problem = f"has {len(cells)} cells, but the header names {len(header)} columns"
                yield BrokenRow(number=number, where=where, problem=problem)
            number += 1


def _checked_header(path: Path, names: list[str]) -> list[str]:
    names = [name.strip() for name in names]
    wrong = sorted({name for name in names if not name or names.count(name) > 1})
    if wrong or not names:
        raise DataError(
            f"the header of {path} is {names}: every column needs its own name, and {wrong} are "
            "empty or repeated; correct the first line"
        )
    return names


def read_parquet(path: Path) -> Iterator[Row | BrokenRow]:
    """Read rows of a Parquet file; lists of structs are chats.

    Raises:
        DataError: the file is not Parquet, or is damaged.
    """
    # Imported here, because it takes 0.1 s and other sources do not need it.
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
                for cells in batch.to_pylist():
                    where = f"{path.name} row {number + 1}"
                    yield row_from(cells, number=number, where=where)
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet (after {number} rows): {error}"
        ) from error
