"""The first look at a source: does the file exist, can its first rows be read, has it the columns.

It reads a few hundred rows of a file, whatever its size, and nothing that has to be asked for over
a network or imported: those are read with all the rest, once the tokenizer is there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from rlhf_ray.config.groups.data import DataConfig, ExamplesConfig, SourceConfig, TextsConfig
from rlhf_ray.data.example_columns import LAYOUTS, check_layout, held_out_source
from rlhf_ray.data.rejects import Rejects, good_rows
from rlhf_ray.data.rows import DataError, Row, check_columns
from rlhf_ray.data.sources.read import has_header, is_streamed, read_rows, source_format

_NUM_ROWS = 200
# Read as a whole, unlike the other formats.
_LARGEST_JSON_BYTES = 16 * 1024 * 1024


def preview_prompts(data: DataConfig) -> None:
    """Refuse a file of prompts that is missing, empty, or lacks a column.

    Raises:
        DataError: as when the whole file is read.
    """
    columns = {
        "prompt_column": data.prompt_column,
        "answer_column": data.answer_column,
        "source_column": data.source_column,
        "id_column": data.id_column,
    }
    _preview(data, lambda rows: check_columns(data, columns, rows))


def preview_texts(texts: TextsConfig) -> None:
    """Like `preview_prompts`, for the texts of PPO-ptx."""
    _preview(texts, lambda rows: check_columns(texts, {"text_column": texts.text_column}, rows))


def preview_examples(examples: ExamplesConfig, kind: str) -> None:
    """Like `preview_prompts`, for the rows of a stage that learns from examples.

    Args:
        kind: of `example_columns.LAYOUTS`.
    """
    sources: list[SourceConfig] = [examples]
    if examples.has_eval_source:
        sources.append(held_out_source(examples))
    for source in sources:

        def check(rows: Sequence[Row], source: SourceConfig = source) -> None:
            check_layout(examples, source, LAYOUTS[kind], rows)

        _preview(source, check)


def preview_held_out(examples: ExamplesConfig) -> None:
    """Like `preview_prompts`, for demonstrations that a model is only measured with."""
    source = held_out_source(examples)
    layouts = LAYOUTS["demonstrations"]
    _preview(source, lambda rows: check_layout(examples, source, layouts, rows))


def _preview(source: SourceConfig, check: Callable[[Sequence[Row]], None]) -> None:
    kind = source_format(source)
    if kind != "json" and not is_streamed(source):
        return
    path = Path(source.path).expanduser()
    if kind == "json" and path.is_file() and path.stat().st_size > _LARGEST_JSON_BYTES:
        return
    rejects = Rejects(source)
    read = list(itertools.islice(read_rows(source), _NUM_ROWS))
    rows = list(good_rows(read, rejects))
    is_whole = len(read) < _NUM_ROWS
    if is_whole and not rows:
        raise DataError(f"{source.key('path')}: {source.path} has no rows{rejects.summary()}")
    # A later line of JSON may have a column that the first ones lack.
    if rows and (is_whole or has_header(source)):
        check(rows)
