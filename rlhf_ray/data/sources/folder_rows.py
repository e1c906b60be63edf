"""Rows of the chosen files of a folder, one file after the other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from rlhf_ray.data.rows import BrokenRow, DataError, Row
from rlhf_ray.data.sources.folder import FolderFiles, names_in

Reader = Callable[[Path], Iterator[Row | BrokenRow]]

# JSON lines need not all have the same columns.
_PEEKED_ROWS = 20


def read_files(chosen: FolderFiles, reader: Reader, key: str) -> Iterator[Row | BrokenRow]:
    """Read the rows of all chosen files, one file after the other, numbered through.

    Raises:
        DataError: two files have different columns.
    """
    _check_same_columns(chosen, reader, key)
    return _numbered(chosen, reader)


def _numbered(chosen: FolderFiles, reader: Reader) -> Iterator[Row | BrokenRow]:
    number = 0
    for path in chosen.files:
        parent = path.relative_to(chosen.folder).parent.as_posix()
        place = "" if parent == "." else f"{parent}/"
        for row in reader(path):
            where = f"{place}{row.where}"
            if isinstance(row, Row):
                yield Row(number=number, where=where, cells=row.cells)
            else:
                yield BrokenRow(number=number, where=where, problem=row.problem)
            number += 1


def _check_same_columns(chosen: FolderFiles, reader: Reader, key: str) -> None:
    """Refuse files of which one has a column in every row that the other has in none."""
    first: tuple[Path, set[str], set[str]] | None = None
    for path in chosen.files:
        rows = [row for row in itertools.islice(reader(path), _PEEKED_ROWS) if isinstance(row, Row)]
        if not rows:
            continue
        names = [set(row.cells) for row in rows]
        some, all_rows = set.union(*names), set.intersection(*names)
        if first is None:
            first = (path, some, all_rows)
            continue
        other, other_some, other_all = first
        here, there = sorted(all_rows - other_some), sorted(other_all - some)
        if here or there:
            one, two = (names_in(chosen.folder, (file,)) for file in (other, path))
            raise DataError(
                f"{key} is {str(chosen.folder)!r}, and its files have different columns: only "
                f"{one} has {_listed(there)}, only {two} has {_listed(here)} (in their first "
                f"{_PEEKED_ROWS} rows). Name one of the files, or give all the same columns"
            )


def _listed(columns: list[str]) -> str:
    return ", ".join(map(repr, columns)) or "no other column"
