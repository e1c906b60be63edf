"""The configuration of a run as its difference to the defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rlhf_ray.config.schema import all_keys
from rlhf_ray.report.forgiving_reads import ReadNotes, as_text

_MAX_SHOWN = 300


def read_settings(folder: Path, notes: ReadNotes) -> dict[str, Any]:
    """Value of every key of config.yaml by dotted name; empty without the file."""
    path = folder / "config.yaml"
    if not path.is_file():
        notes.add("there is no config.yaml: the settings of the run are not known")
        return {}
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        notes.add(f"config.yaml cannot be read: {error}")
        return {}
    if not isinstance(values, dict):
        notes.add("config.yaml holds no settings")
        return {}
    known = all_keys()
    return dict(_flat(values, "", known))


def changed_settings(settings: Mapping[str, Any], notes: ReadNotes) -> list[list[str]]:
    """Name, value and default of every key that differs; "-" for a key without a default."""
    known = all_keys()
    changed = [
        [name, as_text(value, 400), as_text(known[name].default, 400) if name in known else "-"]
        for name, value in settings.items()
        if name not in known or not _is_same(value, known[name].default)
    ]
    if len(changed) > _MAX_SHOWN:
        notes.add(f"{len(changed) - _MAX_SHOWN} of {len(changed)} settings are in config.yaml only")
    return changed[:_MAX_SHOWN]


def different_settings(runs: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Name and value in every run of each key in which the runs differ; "-" where it is missing."""
    names = dict.fromkeys(name for settings in runs.values() for name in settings)
    rows: list[list[str]] = []
    for name in names:
        values = [settings.get(name, "-") for settings in runs.values()]
        if name != "output_dir" and any(not _is_same(value, values[0]) for value in values[1:]):
            rows.append([name, *(as_text(value, 200) for value in values)])
    return rows[:_MAX_SHOWN]


def _flat(values: Mapping[str, Any], prefix: str, known: Mapping[str, Any]) -> Iterator[Any]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in known:
            yield from _flat(value, f"{key}.", known)
        else:
            yield key, value


def _is_same(one: Any, other: Any) -> bool:
    # YAML has no enums or tuples: those of the defaults are compared by their text.
    return one == other or as_text(one, 10_000) == as_text(other, 10_000)
