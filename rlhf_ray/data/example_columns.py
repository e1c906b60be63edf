"""The columns that examples of each kind need, and the source of held-out rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rlhf_ray.config.groups.data import ExamplesConfig, SourceConfig
from rlhf_ray.data.foreign_columns import foreign_hint
from rlhf_ray.data.rows import DataError, Row, check_known_columns, known_names

# Alternative groups of keys that name columns, by kind of example: all columns of one group must
# exist.
LAYOUTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "texts": (("text_column",),),
    "demonstrations": (("messages_column",), ("prompt_column", "answer_column")),
    "rankings": (
        ("prompt_column", "chosen_column", "rejected_column"),
        ("prompt_column", "ranking_column"),
    ),
    "feedback": (("prompt_column", "answer_column", "label_column"),),
}


@dataclass
class HeldOutSource(SourceConfig):
    """Settings of a separate source of held-out rows."""

    group: ClassVar[str] = "examples"

    @classmethod
    def key(cls, name: str) -> str:
        """The dotted name of a key; only path and split differ from those of `examples`."""
        return f"{cls.group}.eval_{name}" if name in ("path", "split") else super().key(name)


def held_out_source(examples: ExamplesConfig) -> HeldOutSource:
    """The separate source of held-out rows."""
    values = {f.name: getattr(examples, f.name) for f in dataclasses.fields(SourceConfig)}
    return HeldOutSource(
        **{
            **values,
            "path": examples.path if examples.eval_path is None else examples.eval_path,
            "split": examples.split if examples.eval_split is None else examples.eval_split,
        }
    )


def check_layout(
    examples: ExamplesConfig,
    source: SourceConfig,
    layouts: Sequence[Sequence[str]],
    rows: Iterable[Row],
) -> None:
    """Refuse rows without the columns of any layout.

    Args:
        layouts: alternative groups of keys that name columns; messages suggest the first.
        rows: as many are read as it takes to find the columns, which is seldom more than one.

    Raises:
        DataError: names the keys, the columns and the existing columns.
    """
    ids = {"id_column": examples.id_column}
    wanted = [{*_columns(examples, layout)} for layout in layouts]
    own = {examples.id_column} - {None}
    known: set[str] = set()
    for row in rows:
        known.update(row.cells)
        if own <= known and any(columns <= known for columns in wanted):
            return
    check_known_columns(source, ids, known)
    needed = [
        " and ".join(
            f"{column!r} ({examples.key(key)})"
            for key, column in zip(layout, _columns(examples, layout), strict=True)
        )
        for layout in layouts
    ]
    missing = next(c for c in _columns(examples, layouts[0]) if c not in known)
    named = [dict(zip(layout, _columns(examples, layout), strict=True)) for layout in layouts]
    raise DataError(
        f"{source.key('path')}: {source.path} has no columns {', nor '.join(needed)}; "
        f"{known_names(missing, known)}{foreign_hint(examples, named, known)}"
    )


def read_columns(examples: ExamplesConfig, kind: str) -> tuple[str | None, ...]:
    """The columns of which examples of a kind are made."""
    keys = {key for layout in LAYOUTS[kind] for key in layout}
    more = () if kind == "texts" else (examples.tools_column,)
    margin = (examples.margin_column,) if kind == "rankings" else ()
    return (examples.id_column, *more, *margin, *_columns(examples, keys))


def _columns(examples: ExamplesConfig, layout: Iterable[str]) -> Iterator[str]:
    values = vars(examples)
    return (values[key] for key in layout)
