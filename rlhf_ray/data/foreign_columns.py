"""Columns by the names of other libraries: the keys to set for the columns that are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set

from rlhf_ray.config.groups.data import SourceConfig
from rlhf_ray.config.groups.prepare_sources import PreparedSource

# Names in data sets of TRL, verl, OpenRLHF, Axolotl and the hub, the likeliest first.
_NAMES: dict[str, tuple[str, ...]] = {
    "text_column": ("text", "content"),
    "messages_column": ("messages", "conversation", "chat"),
    "prompt_column": ("prompt", "question", "instruction", "query", "problem", "input"),
    "answer_column": (
        *("answer", "completion", "response", "output", "solution", "target"),
        *("ground_truth", "label"),
    ),
    "chosen_column": ("chosen", "preferred", "response_chosen"),
    "rejected_column": ("rejected", "dispreferred", "response_rejected"),
    "ranking_column": ("ranking", "responses"),
    "label_column": ("good", "label", "is_good", "thumbs_up"),
}
# Columns that are more than one text or chat each, and the layout of stage=prepare_data for them.
_LAYOUTS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset(("instruction", "input", "output")), "alpaca"),
    (frozenset(("conversations",)), "sharegpt"),
)
# Columns of a kind of `prepare.sources`: alternatives, the most columns first.
_PARTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "text": (("text_column",),),
    "prompt": (("prompt_column", "answer_column"), ("prompt_column",)),
    "demonstration": (("messages_column",), ("prompt_column", "answer_column")),
    "preference": (
        ("prompt_column", "chosen_column", "rejected_column"),
        ("chosen_column", "rejected_column"),
        ("prompt_column", "ranking_column"),
    ),
    "feedback": (("prompt_column", "answer_column", "label_column"),),
}


def foreign_hint(
    source: SourceConfig, layouts: Sequence[Mapping[str, str]], known: Set[str]
) -> str:
    """Words to follow a refusal: keys for the columns that are there; empty if none is known.

    Args:
        layouts: alternatives, each with the configured column of every key that it needs.
        known: columns of the rows.
    """
    if words := _keys_to_set(layouts, known, source.key):
        return words
    if name := _layout_of(known):
        return (
            f". stage=prepare_data reads them with prepare.sources.NAME.layout={name}, and "
            f"writes the columns that are read here"
        )
    return ""


def prepared_hint(source: PreparedSource, known: Set[str]) -> str:
    """The same for an entry of `prepare.sources`; see `foreign_hint`."""
    if source.layout is None:
        layouts = [
            {part: source.columns.get(_part(part), _part(part)) for part in parts}
            for parts in _PARTS[source.kind]
        ]
        words = _keys_to_set(layouts, known, lambda part: f"{source.key}.columns.{_part(part)}")
        if words:
            return words
    name = _layout_of(known)
    if name is None or name == source.layout:
        return ""
    return f". Set {source.key}.layout={name}, which reads these columns"


def _part(key: str) -> str:
    """The name of a column in `prepare.sources`, where a label has another one."""
    return "good" if key == "label_column" else key.removesuffix("_column")


def _keys_to_set(
    layouts: Sequence[Mapping[str, str]], known: Set[str], key_of: Callable[[str], str]
) -> str:
    for layout in layouts:
        if (found := _meant(layout, known)) is not None:
            keys = (f"{key_of(key)}={column}" for key, column in found.items())
            return f". Set {' '.join(keys)}"
    return ""


def _layout_of(known: Set[str]) -> str | None:
    return next((name for columns, name in _LAYOUTS if columns <= known), None)


def _meant(layout: Mapping[str, str], known: Set[str]) -> dict[str, str] | None:
    """A column for every key of a layout whose own column is missing; None if one has none."""
    taken = {column for column in layout.values() if column in known}
    found: dict[str, str] = {}
    for key, column in layout.items():
        if column in known:
            continue
        free = [name for name in _NAMES.get(key, ()) if name in known and name not in taken]
        if not free:
            return None
        found[key] = free[0]
        taken.add(free[0])
    is_alpaca = _LAYOUTS[0][0] <= known and set(found.values()) & _LAYOUTS[0][0]
    return None if is_alpaca or not found else found
