"""Reading a source as a stream of samples, with only some rows in memory."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlhf_ray.config.groups.prepare_sources import PreparedSource
from rlhf_ray.data.foreign_columns import prepared_hint
from rlhf_ray.data.notes import number_note
from rlhf_ray.data.prepare.conversion.columns import columns_layout
from rlhf_ray.data.prepare.conversion.contents import Content, Removal, Sample
from rlhf_ray.data.prepare.conversion.mapping import (
    BROKEN_ROW,
    Layout,
    Mapped,
    Unusable,
    text_in,
    unusable,
)
from rlhf_ray.data.prepare.conversion.plain_text import TEXT_SUFFIXES, read_text
from rlhf_ray.data.prepare.layouts import LAYOUTS
from rlhf_ray.data.rows import BadCell, BrokenRow, DataError, Row, known_names
from rlhf_ray.data.sources.read import (
    FROM_HUB,
    check_file,
    is_on_hub,
    keeps_digits,
    read_rows,
    source_format,
    source_notes,
)

# Columns are collected from this many rows: JSON lines need not all have the same columns.
_PEEKED_ROWS = 100
_ID_CHARACTERS = 16


def check_source(source: PreparedSource) -> None:
    """Refuse a source that does not exist, without reading it.

    Raises:
        DataError: the file is missing or its format unknown; names the key and similar files.
    """
    try:
        if _is_text(source) or source_format(source.data()) in ("jsonl", "json", "csv", "parquet"):
            check_file(Path(source.path).expanduser(), "data.path")
    except DataError as error:
        raise _in_terms_of(source, error) from error


def describe_source(source: PreparedSource, *, unchecked: bool = True) -> list[str]:
    """Lines for the screen: the files of a folder that are read, or a data set on the hub.

    Args:
        unchecked: name a data set on the hub, which is not looked at before it is read.

    Raises:
        DataError: see `check_source`.
    """
    if _is_text(source):
        return []
    data = source.data()
    if is_on_hub(data):
        return [f"not checked: {source.key}.path={source.path} {FROM_HUB}"] if unchecked else []
    return [line.replace(data.key("path"), f"{source.key}.path", 1) for line in source_notes(data)]


def read_samples(source: PreparedSource) -> Iterator[Sample | Removal]:
    """Read the samples of a source in its order, and removals for rows without a sample.

    Raises:
        DataError: the source cannot be read, or lacks a column.
    """
    layout = columns_layout(source) if source.layout is None else LAYOUTS[source.layout]
    try:
        is_of_arrow = not _is_text(source) and not keeps_digits(source.data())
        texts = layout.texts_of(source.columns.values()) if is_of_arrow else ()
        rows = _rows(source)
        first = list(itertools.islice(rows, _PEEKED_ROWS))
        _check_columns(source, layout, first)
        for outcome in layout.apply(itertools.chain(first, rows), source.native_kind):
            yield _sample(source, layout, outcome, texts)
    except DataError as error:
        raise _in_terms_of(source, error) from error


def check_rows(source: PreparedSource, *, on_bad_row: str) -> int:
    """Read and map every row once, keep none, and count the samples.

    Raises:
        DataError: as `read_samples`; also for the first broken row if `on_bad_row` is error.
    """
    count = 0
    for item in read_samples(source):
        if isinstance(item, Removal):
            if on_bad_row == "error" and item.reason == BROKEN_ROW:
                raise DataError(
                    f"{source.key}: {item.where}: {item.detail}. Correct the row, or set "
                    "prepare.on_bad_row=skip, which leaves such rows out and counts them"
                )
        else:
            count += 1
    return count


def digest(content: Content) -> str:
    """Hash of a content, the same on every machine."""
    text = json.dumps([content.kind, content.to_json()], ensure_ascii=False, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _sample(
    source: PreparedSource, layout: Layout, outcome: Mapped | Unusable, texts: Sequence[str]
) -> Sample | Removal:
    """The sample of a row, or its removal.

    Args:
        texts: columns whose numbers have lost the digits that they were written with.
    """
    if isinstance(outcome, Mapped):
        try:
            return Sample(
                sample_id=f"{source.name}-{_identity(source, outcome)}",
                task=_task(source, outcome.row),
                source=source.name,
                where=outcome.row.where,
                content=outcome.content,
                left_out=layout.left_out(outcome.row, source.columns.values()),
                notes=tuple(note for column in texts for note in number_note(outcome.row, column)),
            )
        except BadCell as error:
            outcome = unusable(outcome.row, BROKEN_ROW, error)
    return Removal(
        sample_id=f"{source.name}-row{outcome.number + 1}",
        source=source.name,
        where=outcome.where,
        reason=outcome.reason,
        detail=outcome.problem,
    )


def _identity(source: PreparedSource, mapped: Mapped) -> str:
    """The source's id, or a hash of the content, which does not depend on other rows."""
    if "id" in source.columns:
        return f"{text_in(mapped.row, source.columns['id'])}{mapped.suffix}"
    return digest(mapped.content)[:_ID_CHARACTERS]


def _task(source: PreparedSource, row: Row) -> str:
    return text_in(row, source.columns["task"]) if "task" in source.columns else source.task


def _rows(source: PreparedSource) -> Iterator[Row | BrokenRow]:
    if not _is_text(source):
        return read_rows(source.data())
    path = Path(source.path).expanduser()
    check_file(path, "data.path")
    return itertools.islice(read_text(path, source.unit), source.limit)


def _is_text(source: PreparedSource) -> bool:
    by_name = source.format == "auto" and source.path.lower().endswith(TEXT_SUFFIXES)
    return source.format == "text" or by_name


def _check_columns(source: PreparedSource, layout: Layout, first: list[Row | BrokenRow]) -> None:
    if not first:
        raise DataError(f"{source.key}: {source.path} has no rows; name a source with rows")
    rows = [row for row in first if isinstance(row, Row)]
    known = {name for row in rows for name in row.cells}
    named = tuple((source.columns[part],) for part in ("id", "task") if part in source.columns)
    for group in (*layout.needs, *named):
        if rows and not known.intersection(group):
            raise DataError(
                f"{source.key}: {_asked(source, group)}, and {source.path} has no such column in "
                f"its first {len(rows)} rows; {known_names(group[0], known)}"
                f"{prepared_hint(source, known) or _ways(source)}"
            )


def _asked(source: PreparedSource, group: Sequence[str]) -> str:
    """Name the reader of one of these columns: an entry of `columns`, the layout or the kind."""
    for part, column in source.columns.items():
        if tuple(group) == (column,):
            return f"columns.{part} is {column!r}"
    asks = f"layout={source.layout}" if source.layout else f"kind={source.kind}"
    return f"{asks} reads the column {' or '.join(map(repr, group))}"


def _ways(source: PreparedSource) -> str:
    return "" if source.layout else f". Set {source.key}.columns to the names of your columns"


def _in_terms_of(source: PreparedSource, error: DataError) -> DataError:
    """Replace the keys of the readers' messages, such as `data.path`, by those of the source."""
    names = {"split": "dataset_split"}
    text = re.sub(
        r"\bdata\.(path|format|split|limit|row_timeout_s)\b",
        lambda match: f"{source.key}.{names.get(match[1], match[1])}",
        str(error),
    )
    return DataError(text if text.startswith(source.key) else f"{source.key}: {text}")
