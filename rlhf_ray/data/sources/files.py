"""Rows from JSON lines, JSON, CSV and Parquet files."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rlhf_ray.data.rows import BrokenRow, DataError, Row, row_from, shown
from rlhf_ray.data.sources.cells import (
    BadValue,
    arrow_row,
    decoded,
    narrow_columns,
    parse_json,
    plain_row,
    plain_value,
)
from rlhf_ray.data.sources.compressed import opened
from rlhf_ray.data.sources.whole_numbers import whole_columns_of_file

_MAX_CELL_CHARACTERS = 2**27
# A row of more would take minutes and gigabytes to be found too long.
MAX_LINE_BYTES = 2**27
# A whole file that is one list; its objects in Python take five to ten times as much.
MAX_FILE_BYTES = 2**31
# Long lines are passed over in pieces of this size.
_SKIPPED_BYTES = 2**24
_PARQUET_BATCH_ROWS = 1024
# pyarrow reads all of a row group at once, which may be the file, unless it is told otherwise.
_PARQUET_READS = {"pre_buffer": False, "buffer_size": 2**20}
_LIST_OF_OBJECTS = re.compile(rb"(\xef\xbb\xbf)?\s*\[\s*(\{|$)")
# Cells of CSV that pandas, and with it `datasets`, reads as missing.
_MISSING = frozenset(
    ("NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None")
)


def read_jsonl(path: Path, *, format_key: str) -> Iterator[Row | BrokenRow]:
    """Read one JSON object per line; skip blank lines. Messages count lines from 1.

    Args:
        format_key: dotted name of the setting of the file's format.

    Raises:
        DataError: the file holds one list of objects, or compressed data that are damaged.
    """
    number = 0
    # Bytes: a line that is not UTF-8 is one broken row, not the end of the file.
    with opened(path) as file:
        for line_number, line in enumerate(_lines(file), start=1):
            if line is None:
                where = f"{path.name} line {line_number}"
                problem = (
                    f"has more than {MAX_LINE_BYTES:,} bytes, the most that are read of a line"
                )
                yield BrokenRow(number=number, where=where, problem=problem)
                number += 1
                continue
            if not line.strip():
                continue
            if number == 0 and _LIST_OF_OBJECTS.match(line):
                raise DataError(
                    f"{path} holds one list of objects, not an object in each line; set "
                    f"{format_key}=json, which reads the whole file at once, or write a line for "
                    "each object"
                )
            yield _json_row(line, number=number, where=f"{path.name} line {line_number}")
            number += 1


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """The lines of a file; None for a line that is too long, of which only a part is in memory."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) <= MAX_LINE_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_SKIPPED_BYTES)
        yield None


def _json_row(line: bytes, *, number: int, where: str) -> Row | BrokenRow:
    try:
        value = parse_json(line.decode("utf-8-sig").strip())
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8: {error.reason} at byte {error.start}"
        return BrokenRow(number=number, where=where, problem=problem)
    except BadValue as error:
        return BrokenRow(number=number, where=where, problem=str(error))
    return row_from(value, number=number, where=where)


def read_json(path: Path, *, format_key: str) -> Iterator[Row | BrokenRow]:
    """Read a list of objects, or an object with such a list as its field `data`.

    Args:
        format_key: dotted name of the setting of the file's format.

    Raises:
        DataError: the file is not JSON, is too large, or holds no list of objects.
    """
    try:
        with opened(path) as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise DataError(
                f"{path} has more than {MAX_FILE_BYTES:,} bytes, the most that are read of one "
                f"list, because all of it is in memory, at several times its size; write a line "
                f"for each object (jq -c '.[]' FILE > FILE.jsonl), or Parquet, which are read row "
                f"by row, and name that file"
            )
        content = decoded(text.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        hint = ""
        if error.msg == "Extra data":
            hint = f"; if every line is one object, set {format_key}=jsonl"
        raise DataError(
            f"{path} line {error.lineno} column {error.colno} is not JSON: {error.msg}{hint}"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    except BadValue as error:
        raise DataError(
            f"{path} {error}. Write a line for each object and set {format_key}=jsonl: then only "
            "the row is refused"
        ) from error
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise DataError(
            f"{path} must hold a list of objects, or an object with such a list as `data`; "
            f"it holds {shown(content)}"
        )
    for number, value in enumerate(rows):
        yield plain_row(value, number=number, where=f"{path.name} row {number + 1}")


def read_csv(path: Path) -> Iterator[Row | BrokenRow]:
    """Read comma-separated values under a header line; cells stay text, so that 007 is not 7.

    A cell that pandas and `datasets` take for missing, such as NA or nan, is null. An empty cell is
    empty text.

    Raises:
        DataError: the header is not UTF-8, or has an empty or repeated name.
    """
    csv.field_size_limit(_MAX_CELL_CHARACTERS)
    # A byte that is not UTF-8 makes one broken row: `plain_row` finds the mark that it leaves.
    with (
        opened(path) as file,
        io.TextIOWrapper(file, newline="", encoding="utf-8-sig", errors="surrogateescape") as text,
    ):
        yield from _csv_rows(path, csv.reader(text, strict=True))


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
                known = (None if cell in _MISSING else cell for cell in cells)
                named = dict(zip(header, known, strict=True))
                yield plain_row(named, number=number, where=where)
            else:
                problem = f"has {len(cells)} cells, but the header names {len(header)} columns"
                yield BrokenRow(number=number, where=where, problem=problem)
            number += 1


def _checked_header(path: Path, names: list[str]) -> list[str]:
    names = [name.strip() for name in names]
    try:
        plain_value(names)
    except BadValue as error:
        raise DataError(f"the header of {path} {error}; save the file as UTF-8") from error
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
        DataError: the file is not Parquet, is damaged, or has two columns of one name.
    """
    # Imported here, because it takes 0.1 s and other sources do not need it.
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path, **_PARQUET_READS) as file:
            _check_names(path, file.schema_arrow.names)
            narrow = {**narrow_columns(file.schema_arrow), **whole_columns_of_file(file)}
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
                for cells in _batch_rows(batch):
                    where = f"{path.name} row {number + 1}"
                    yield arrow_row(cells, number=number, where=where, narrow=narrow)
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet (after {number} rows): {error}"
        ) from error


def _check_names(path: Path, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path} has several columns with the name {', '.join(map(repr, twice))}, of which "
            "only one could be read; rename them"
        )


def _batch_rows(batch: Any) -> Iterator[Any]:
    """The rows of a batch; a `BadValue` in place of a row that Python cannot hold."""
    # Errors of Arrow: text that is not UTF-8, a date before year 1, one name twice in a struct.
    errors = (ValueError, OverflowError, KeyError)
    try:
        yield from batch.to_pylist(maps_as_pydicts="strict")
    except errors:
        for number in range(batch.num_rows):
            try:
                (cells,) = batch.slice(number, 1).to_pylist(maps_as_pydicts="strict")
            except errors as error:
                cells = BadValue(f"cannot be read: {type(error).__name__}: {error}")
            yield cells
