"""Entries of `pipeline.stages`: a value that is told later joins what its stage already has.

An entry has a group's chosen file and its keys next to each other, as a command line has them:
`algorithm: ppo` and `algorithm.kl_coefficient: 0.05`. Keys of a group without a choice may be
nested in it instead.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from rlhf_ray.config.schema import all_keys, leaves

STAGES = "pipeline.stages"


def told_stages(stages: Any, told: Any) -> Any:
    """The stages after `pipeline.stages=told`.

    Stages that name their `stage` replace all that were there. Where one does not, it has keys for
    a stage of that name, and the others stay.
    """
    if not (isinstance(stages, dict) and isinstance(told, Mapping)):
        return copy.deepcopy(told)
    if all(_is_whole(entry) for entry in told.values()):
        return copy.deepcopy(dict(told))
    found = dict(stages)
    for name, entry in told.items():
        set_in_stages(found, str(name), entry)
    return found


def set_in_stages(stages: dict[str, Any], path: str, value: Any) -> None:
    """Set `NAME` or `NAME.KEY`: a stage, a group of it, the file of a group, or a key."""
    name, _, key = path.partition(".")
    entry = stages.get(name)
    values = {key: value} if key else value
    if not isinstance(values, Mapping) or (not key and _is_whole(values)):
        stages[name] = copy.deepcopy(values)
        return
    entry = dict(entry) if isinstance(entry, Mapping) else {}
    for told, inner in values.items():
        _set(entry, str(told), copy.deepcopy(inner))
    stages[name] = entry


def _is_whole(entry: Any) -> bool:
    return not isinstance(entry, Mapping) or "stage" in entry


def _set(entry: dict[str, Any], name: str, value: Any) -> None:
    name = "stage" if name == "stage.name" else name
    group = name.partition(".")[0]
    choice, keys = _taken_out(entry, group)
    if name == group and not isinstance(value, Mapping):
        # The name of a file, or a key without a group, such as num_steps.
        entry[group] = choice = value
    else:
        if choice is not None:
            entry[group] = choice
        for key, inner in leaves({name: value}, ""):
            _set_key(keys, key, inner)
    for key, inner in keys.items():
        if choice is None and key in all_keys():
            _nest(entry, key.split("."), inner)
        else:
            entry[key] = inner


def _taken_out(entry: dict[str, Any], group: str) -> tuple[Any, dict[str, Any]]:
    """The choice of a group, or None, and its keys with dots; the entry has neither any more."""
    choice, keys = None, dict[str, Any]()
    for key in [key for key in entry if key == group or str(key).startswith(f"{group}.")]:
        value = entry.pop(key)
        if key == group and not isinstance(value, Mapping):
            choice = value
            continue
        for name, inner in leaves({key: value}, ""):
            _set_key(keys, name, inner)
    return choice, keys


def _set_key(keys: dict[str, Any], name: str, value: Any) -> None:
    """Set a key, or an entry of a key that is a mapping."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        outer = ".".join(parts[:length])
        if isinstance(keys.get(outer), Mapping):
            keys[outer] = dict(keys[outer])
            _nest(keys[outer], parts[length:], value)
            return
    for inner in [key for key in keys if key.startswith(f"{name}.")]:
        del keys[inner]
    keys[name] = value


def _nest(mapping: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        inner = mapping.get(name)
        mapping[name] = dict(inner) if isinstance(inner, Mapping) else {}
        mapping = mapping[name]
    mapping[path[-1]] = value
