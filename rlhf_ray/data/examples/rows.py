"""Rows of the training source and the held-out source, and the side of each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_ray.config.groups.data import ExamplesConfig, SourceConfig
from rlhf_ray.data.example_columns import check_layout, held_out_source
from rlhf_ray.data.examples.split import is_held_out
from rlhf_ray.data.rejects import Rejects, good_rows
from rlhf_ray.data.rows import DataError, Row, text_cell
from rlhf_ray.data.sources.read import read_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The parsed rows of one source.

    Attributes:
        config: settings of the source.
        rows: at least one.
        rejects: counts the rows left out.
        share: share of the keys that is held out.
    """

    config: SourceConfig
    rows: tuple[Row, ...]
    rejects: Rejects
    share: float

    def holds_out(self, key: str) -> bool:
        """Whether the rows with this key are held out."""
        return self.share == 1.0 or is_held_out(key, self.share)


def read_sources(examples: ExamplesConfig, layouts: Sequence[Sequence[str]]) -> tuple[Source, ...]:
    """Read the source of rows, and the source of held-out rows if it is separate.

    Args:
        layouts: alternative groups of keys that name columns; all columns of one group must
            exist. Messages suggest the first group.

    Raises:
        DataError: a source cannot be read, has no rows, or lacks columns; or a row is unusable
            and the configuration ends the run.
    """
    configs: list[tuple[SourceConfig, float]] = [(examples, examples.held_out_share)]
    if examples.has_eval_source:
        configs.append((held_out_source(examples), 1.0))
    sources = []
    for config, share in configs:
        rejects = Rejects(config)
        rows = tuple(good_rows(read_rows(config), rejects))
        if not rows:
            raise DataError(f"{config.key('path')}: {config.path} has no rows{rejects.summary()}")
        check_layout(examples, config, layouts, rows)
        sources.append(Source(config=config, rows=rows, rejects=rejects, share=share))
    return tuple(sources)


def identity(row: Row, examples: ExamplesConfig) -> str | None:
    """The id of the row, if the configuration names a column of ids.

    Raises:
        BadCell: the row has no id.
    """
    return None if examples.id_column is None else text_cell(row, examples.id_column)
