"""Rows of the training source and the held-out source, and the side of each row."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rlhf_ray.config.groups.data import ExamplesConfig, SourceConfig
from rlhf_ray.data.examples.split import is_held_out
from rlhf_ray.data.rejects import Rejects, good_rows
from rlhf_ray.data.rows import DataError, Row, check_columns, known_names, text_cell
from rlhf_ray.data.sources.read import read_rows


@dataclass
class HeldOutSource(SourceConfig):
    """Settings of a separate source of held-out rows."""

    group: ClassVar[str] = "examples"

    @classmethod
    def key(cls, name: str) -> str:
        """The dotted name of a key; only path and split differ from those of `examples`."""
        return f"{cls.group}.eval_{name}" if name in ("path", "split") else super().key(name)


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
        configs.append((_held_out_source(examples), 1.0))
    sources = []
    for config, share in configs:
        rejects = Rejects(config)
        rows = tuple(good_rows(read_rows(config), rejects))
        if not rows:
            raise DataError(f"{config.key('path')}: {config.path} has no rows{rejects.summary()}")
        _check_layout(examples, config, layouts, rows)
        sources.append(Source(config=config, rows=rows, rejects=rejects, share=share))
    return tuple(sources)


def identity(row: Row, examples: ExamplesConfig) -> str | None:
    """The id of the row, if the configuration names a column of ids.

    Raises:
        BadCell: the row has no id.
    """
    return None if examples.id_column is None else text_cell(row, examples.id_column)


def _held_out_source(examples: ExamplesConfig) -> HeldOutSource:
    values = {f.name: getattr(examples, f.name) for f in dataclasses.fields(SourceConfig)}
    return HeldOutSource(
        **{
            **values,
            "path": examples.path if examples.eval_path is None else examples.eval_path,
            "split": examples.split if examples.eval_split is None else examples.eval_split,
        }
    )


def _check_layout(
    examples: ExamplesConfig,
    source: SourceConfig,
    layouts: Sequence[Sequence[str]],
    rows: Iterable[Row],
) -> None:
    check_columns(source, {"id_column": examples.id_column}, rows)
    known = {name for row in rows for name in row.cells}
    if any(known.issuperset(_columns(examples, layout)) for layout in layouts):
        return
    needed = [
        " and ".join(
            f"{column!r} ({examples.key(key)})"
            for key, column in zip(layout, _columns(examples, layout), strict=True)
        )
        for layout in layouts
    ]
    missing = next(c for c in _columns(examples, layouts[0]) if c not in known)
    raise DataError(
        f"{source.key('path')}: {source.path} has no columns {', nor '.join(needed)}; "
        f"{known_names(missing, known)}"
    )


def _columns(examples: ExamplesConfig, layout: Iterable[str]) -> Iterator[str]:
    values = vars(examples)
    return (values[key] for key in layout)
