"""Columns by the names of other libraries: the keys to set for the columns that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from rlhf_ray.config.groups.data import SourceConfig

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
_LAYOUTS = (
    (frozenset(("instruction", "input", "output")), "alpaca"),
    (frozenset(("conversations",)), "sharegpt"),
)


def foreign_hint(
    source: SourceConfig, layouts: Sequence[Mapping[str, str]], known: Set[str]
) -> str:
    """Words to follow a refusal: keys for the columns that are there; empty if none is known.

    Args:
        layouts: alternatives, each with the configured column of every key that it needs.
        known: columns of the rows.
    """
    for layout in layouts:
        if (found := _meant(layout, known)) is not None:
            keys = (f"{source.key(key)}={column}" for key, column in found.items())
            return f". Set {' '.join(keys)}"
    for columns, name in _LAYOUTS:
        if columns <= known:
            return (
                f". stage=prepare_data reads them with prepare.sources.NAME.layout={name}, and "
                f"writes the columns that are read here"
            )
    return ""


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
