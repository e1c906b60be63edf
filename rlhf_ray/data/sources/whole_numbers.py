"""Columns of whole numbers that pandas has written as floats, because a value is missing in them.

pandas makes 3.0 of 3 where another row of the column has no value, and a reward function would see
a float in place of the integer that the row had. Such a column is known by two things together: it
has missing values, and all others are whole. A column of floats that misses nothing was meant so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rlhf_ray.data.sources.cells import Widen

# Floats hold whole numbers exactly below this.
_MOST = 2**53


def whole_columns_of_file(file: Any) -> dict[str, Widen]:
    """The function for each such column of a `pyarrow.parquet.ParquetFile`.

    Only columns of floats are read, a row group at a time, and each up to the first fraction.
    """
    return _whole(_floats(file.schema_arrow), lambda name: _chunks_of_file(file, name))


def whole_columns_of_table(table: Any) -> dict[str, Widen]:
    """The same for a table of Arrow."""
    return _whole(_floats(table.schema), lambda name: table.column(name).chunks)


def _chunks_of_file(file: Any, name: str) -> Iterator[Any]:
    for group in range(file.num_row_groups):
        yield from file.read_row_group(group, columns=[name]).column(name).chunks


def _floats(schema: Any) -> list[str]:
    import pyarrow

    return [field.name for field in schema if pyarrow.types.is_float64(field.type)]


def _whole(names: Iterable[str], chunks_of: Callable[[str], Iterable[Any]]) -> dict[str, Widen]:
    return {name: _as_integer for name in names if _is_whole(chunks_of(name))}


def _is_whole(chunks: Iterable[Any]) -> bool:
    """Whether values are missing, and all others are whole and exact."""
    import numpy

    misses = False
    for chunk in chunks:
        values = chunk.to_numpy(zero_copy_only=False)  # NaN where a value is missing.
        is_missing = numpy.isnan(values)
        misses |= bool(is_missing.any())
        there = values[~is_missing]
        if bool((numpy.floor(there) != there).any() or (numpy.abs(there) >= _MOST).any()):
            return False
    return misses


def _as_integer(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value == value else value
