"""The training source and the held-out source of rows, and the side of each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from rlhf_ray.config.groups.data import ExamplesConfig, SourceConfig
from rlhf_ray.data.example_columns import check_layout, held_out_source
from rlhf_ray.data.examples.split import is_held_out
from rlhf_ray.data.rejects import Rejects, good_rows
from rlhf_ray.data.rows import BrokenRow, DataError, Row, text_cell
from rlhf_ray.data.sources.read import read_rows, source_format


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One source of rows.

    Attributes:
        config: settings of the source.
        rejects: counts the rows left out.
        share: share of the keys that is held out.
        kept: the rows of a source that is in memory already; None for one that is read again.
    """

    config: SourceConfig
    rejects: Rejects
    share: float
    kept: tuple[Row | BrokenRow, ...] | None

    def rows(self) -> Iterator[Row]:
        """Read the rows; those that cannot be parsed are counted or end the run.

        Raises:
            DataError: the source cannot be read, or a row is broken and the configuration ends the
                run.
        """
        return good_rows(read_rows(self.config) if self.kept is None else self.kept, self.rejects)

    def holds_out(self, key: str) -> bool:
        """Whether the rows with this key are held out."""
        return self.share == 1.0 or is_held_out(key, self.share)


def open_sources(examples: ExamplesConfig, layouts: Sequence[Sequence[str]]) -> tuple[Source, ...]:
    """The source of rows, and the source of held-out rows if it is separate.

    Rows are read until their columns are known, and again when they are used: files can be larger
    than memory.

    Args:
        layouts: alternative groups of keys that name columns; all columns of one group must
            exist. Messages suggest the first group.

    Raises:
        DataError: a source cannot be read, has no rows, or lacks columns; or one of the rows that
            were read is unusable and the configuration ends the run.
    """
    configs: list[tuple[SourceConfig, float]] = [(examples, examples.held_out_share)]
    if examples.has_eval_source:
        configs.append((held_out_source(examples), 1.0))
    sources = []
    for config, share in configs:
        # Rows of Python code are in memory, and may come out of a generator only once.
        kept = tuple(read_rows(config)) if source_format(config) == "python" else None
        source = Source(config=config, rejects=Rejects(config), share=share, kept=kept)
        _check_columns(examples, source, layouts)
        sources.append(source)
    return tuple(sources)


def _check_columns(
    examples: ExamplesConfig, source: Source, layouts: Sequence[Sequence[str]]
) -> None:
    config = source.config
    # Rows that are left out are counted when the rows are used, and not here.
    trial = replace(source, rejects=Rejects(config))
    rows = trial.rows()
    first = next(rows, None)
    if first is None:
        summary = trial.rejects.summary()
        raise DataError(f"{config.key('path')}: {config.path} has no rows{summary}")
    check_layout(examples, config, layouts, chain([first], rows))


def identity(row: Row, examples: ExamplesConfig) -> str | None:
    """The id of the row, if the configuration names a column of ids.

    Raises:
        BadCell: the row has no id.
    """
    return None if examples.id_column is None else text_cell(row, examples.id_column)
