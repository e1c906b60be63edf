"""Entries of `prepare.sources` and `prepare.evaluation_sets`."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.data import DataConfig
from rlhf_ray.config.keys.listing import there_are
from rlhf_ray.config.paths import path_problem
from rlhf_ray.config.setting import not_text

# Columns by kind; docs/data.md has the optional ones in brackets.
COLUMNS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "prompt": ("prompt", "answer", "tools"),
    "demonstration": ("messages", "prompt", "answer", "tools"),
    "preference": (
        "prompt",
        "chosen",
        "rejected",
        "margin",
        "chosen_score",
        "rejected_score",
        "ranking",
        "answers",
        "scores",
        "tools",
    ),
    "feedback": ("prompt", "answer", "good", "tools"),
}
KINDS = tuple(COLUMNS)
_COMMON_COLUMNS = ("id", "task")

# Kinds of a layout; the first is the default.
LAYOUT_KINDS: dict[str, tuple[str, ...]] = {
    "alpaca": ("demonstration",),
    "gsm8k": ("prompt", "demonstration"),
    "hh_rlhf": ("preference",),
    "openassistant": ("demonstration", "preference", "prompt"),
    "sharegpt": ("demonstration",),
    "ultrafeedback": ("preference",),
}

# Other kinds that a kind can become.
BECOMES: dict[str, tuple[str, ...]] = {
    "text": (),
    "prompt": (),
    "demonstration": ("prompt",),
    "preference": ("demonstration", "prompt", "feedback"),
    "feedback": ("demonstration", "prompt"),
}

# Stages that `prepare.split` divides the samples among, in order, and the kind each reads.
STAGE_KINDS: dict[str, str] = {
    "sft": "demonstration",
    "reward_model": "preference",
    "rl": "prompt",
}

# Names of sources are part of ids.
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_FORMATS = ("auto", "jsonl", "json", "csv", "parquet", "saved", "hub", "python", "text")
_MAX_SHOWN = 80
_UNITS = ("paragraph", "line", "file")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedSource:
    """One source.

    Attributes:
        key: key of the entry, for messages.
        name: name in `prepare.sources`, and in every sample's `source` and `id`.
        path: like `data.path`, or a plain text file.
        format: like `data.format`, or text.
        dataset_split: split of a hub or saved data set.
        unit: part of plain text that is one sample.
        layout: name of a known mapping, or None.
        kind: kind of the samples.
        columns: column names by content, where they differ from the default names.
        task: task of samples that do not name one.
        limit: most rows to read.
        row_timeout_s: like `data.row_timeout_s`.
        weight: share of the blend, relative to the other sources.
        max_epochs: see `prepare.max_epochs`.
        max_samples: most samples in a train.jsonl, repetitions included.
        split: see `prepare.split`.
    """

    key: str
    name: str
    path: str
    format: str = "auto"
    dataset_split: str = "train"
    unit: str = "paragraph"
    layout: str | None = None
    kind: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    task: str = ""
    limit: int | None = None
    row_timeout_s: float = 600.0
    weight: float | None = None
    max_epochs: float | None = None
    max_samples: int | None = None
    split: tuple[float, ...] | None = None

    @property
    def native_kind(self) -> str:
        """The kind that is read before it becomes `kind`."""
        if self.layout is None:
            return self.kind
        return native_kind(self.layout, self.kind)

    def data(self) -> DataConfig:
        """Settings for the readers of `rlhf_ray.data`."""
        return DataConfig(
            path=self.path,
            format=self.format,
            split=self.dataset_split,
            limit=self.limit,
            row_timeout_s=self.row_timeout_s,
        )


_FIELDS = tuple(f.name for f in dataclasses.fields(PreparedSource) if f.name not in ("key", "name"))


def native_kind(layout: str, kind: str) -> str:
    """The kind of the layout that `kind` comes from: itself, or the first that can become it."""
    kinds = LAYOUT_KINDS[layout]
    if kind in kinds:
        return kind
    return next(native for native in kinds if kind in BECOMES[native])


def read_source(name: str, entry: Any, *, group: str) -> PreparedSource:
    """Read an entry.

    Args:
        group: the key that holds the entries, for messages.

    Raises:
        RequestError: the entry is wrong; the message names the key, the value and what to do.
    """
    where = f"{group}.{name}"
    if not _NAME.fullmatch(name):
        raise RequestError(
            f"{where}: a source's name has letters, digits, '_', '-' and '.' only; rename it"
        )
    if isinstance(entry, str):
        entry = {"path": entry}
    if not isinstance(entry, Mapping):
        raise RequestError(f"{where}={entry!r}: must be a mapping with path and layout or kind")
    values = {key: value for key, value in entry.items() if value is not None}
    for key in values:
        if key not in _FIELDS:
            raise RequestError(
                f"{where}.{key}: unknown key; {there_are(_nearest(str(key), _FIELDS), _FIELDS)}"
            )
    if isinstance(path := values.get("path"), str) and (problem := path_problem(path)):
        raise RequestError(f"{where}.path={path[:_MAX_SHOWN]}: {problem}")
    layout = _one_of(where, "layout", values.get("layout"), LAYOUT_KINDS)
    kind = _read_kind(where, values.get("kind"), layout, text_file=_is_text(values))
    source = PreparedSource(
        key=where,
        name=name,
        path=_text(where, "path", values.get("path")),
        format=_one_of(where, "format", values.get("format"), _FORMATS) or "auto",
        dataset_split=_text(where, "dataset_split", values.get("dataset_split", "train")),
        unit=_one_of(where, "unit", values.get("unit"), _UNITS) or "paragraph",
        layout=layout,
        kind=kind,
        columns=_read_columns(where, values.get("columns", {}), kind, layout),
        task=_text(where, "task", values.get("task", name)),
        limit=_count(where, "limit", values.get("limit")),
        row_timeout_s=_positive(where, "row_timeout_s", values.get("row_timeout_s")) or 600.0,
        weight=_positive(where, "weight", values.get("weight")),
        max_epochs=_positive(where, "max_epochs", values.get("max_epochs")),
        max_samples=_count(where, "max_samples", values.get("max_samples")),
        split=None if "split" not in values else read_split(f"{where}.split", values["split"]),
    )
    if source.format == "text" and (layout or kind != "text"):
        raise RequestError(f"{where}.format=text: plain text needs kind=text and no layout")
    return source


def read_split(where: str, value: Any) -> tuple[float, ...]:
    """Read the shares of the stages; () is no split.

    Raises:
        RequestError: the number of shares is not the number of stages, or no share is above 0.
    """
    stages = ", ".join(STAGE_KINDS)
    fix = f"give one number for each of {stages}, such as [2,4,4]; 0 leaves a stage out"
    if not isinstance(value, list | tuple) or not all(_is_number(item) for item in value):
        raise RequestError(f"{where}={value!r}: must be a list of numbers; {fix}")
    if value and (len(value) != len(STAGE_KINDS) or min(value) < 0 or max(value) == 0):
        raise RequestError(f"{where}={list(value)}: {fix}")
    return tuple(float(item) for item in value)


def _is_text(values: Mapping[str, Any]) -> bool:
    return values.get("format") == "text" or str(values.get("path", "")).endswith((".txt", ".text"))


def _read_kind(where: str, kind: Any, layout: str | None, *, text_file: bool) -> str:
    if kind is None and layout is None and text_file:
        return "text"
    if kind is None and layout is None:
        raise RequestError(
            f"{where}: neither kind nor layout is set; set the kind of its samples "
            f"({', '.join(KINDS)}) or a layout ({', '.join(LAYOUT_KINDS)})"
        )
    if kind is None:
        return LAYOUT_KINDS[str(layout)][0]
    _one_of(where, "kind", kind, KINDS)
    if layout is not None:
        native = LAYOUT_KINDS[layout]
        possible = {*native, *(other for known in native for other in BECOMES[known])}
        if kind not in possible:
            raise RequestError(
                f"{where}.kind={kind}: the layout {layout} gives {', '.join(sorted(possible))}"
            )
    return str(kind)


def _read_columns(where: str, columns: Any, kind: str, layout: str | None) -> Mapping[str, str]:
    known = _COMMON_COLUMNS if layout else (*_COMMON_COLUMNS, *COLUMNS[kind])
    if not isinstance(columns, Mapping):
        raise RequestError(f"{where}.columns={columns!r}: must be a mapping of names")
    for name, column in columns.items():
        if name not in known:
            reason = f"the layout {layout}" if layout else f"kind={kind}"
            raise RequestError(
                f"{where}.columns.{name}: {reason} has no such column; "
                f"{there_are(_nearest(str(name), known), known)}"
            )
        _text(where, f"columns.{name}", column)
    return dict(columns)


def _one_of(where: str, key: str, value: Any, known: Iterable[str]) -> str | None:
    if value is None or (isinstance(value, str) and value in known):
        return value
    raise RequestError(
        f"{where}.{key}={value}: unknown; {there_are(_nearest(str(value), known), known)}"
    )


def _text(where: str, key: str, value: Any) -> str:
    if value is None:
        raise RequestError(f"{where}.{key} is not set; set it")
    if not isinstance(value, str):
        raise RequestError(f"{where}.{key}={value}: {not_text(value)}")
    if not value.strip():
        raise RequestError(f"{where}.{key}={value!r}: is empty; set it")
    return value


def _count(where: str, key: str, value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise RequestError(f"{where}.{key}={value!r}: must be a whole number of at least 1")
    return value


def _positive(where: str, key: str, value: Any) -> float | None:
    if value is not None and not (_is_number(value) and value > 0):
        raise RequestError(f"{where}.{key}={value!r}: must be a number greater than 0")
    return None if value is None else float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}? " if close else ""
