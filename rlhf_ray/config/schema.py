"""Every key of the configuration, read from the dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rlhf_ray.config.run import Config
from rlhf_ray.config.setting import Setting, setting_of

# Enough for an exchanged letter or a forgotten group, too little for an unrelated word.
_CLOSE_ENOUGH = 0.6
_MAX_SUGGESTIONS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One key that takes a value.

    Attributes:
        name: dotted, as on the command line.
        type: its type, as annotated.
        default: of a new `Config`.
        setting: help, unit and rule.
    """

    name: str
    type: Any
    default: Any
    setting: Setting

    @property
    def is_mapping(self) -> bool:
        """Whether it takes names of the user's choice: `key.name=value`."""
        return typing.get_origin(self.type) is dict

    def type_words(self) -> str:
        """The type for people: "whole number or null"."""
        return _type_words(self.type)


def all_keys() -> dict[str, Key]:
    """Every key that takes a value, by its dotted name, in the order of the dataclasses."""
    return {key.name: key for key in _walk(Config(), "")}


@functools.cache
def path_keys() -> tuple[Key, ...]:
    """Keys whose value may name a local file or folder."""
    return tuple(key for key in all_keys().values() if key.setting.is_path)


@functools.cache
def group_names() -> tuple[str, ...]:
    """Keys that hold further keys: training, reward, reward.model, ..."""
    return tuple(all_groups())


def all_groups() -> dict[str, Any]:
    """Every group of keys by its dotted name, with its defaults."""
    return dict(_groups(Config(), ""))


def nearest_keys(name: str) -> list[str]:
    """Keys that the writer of an unknown one may have meant, the likeliest first."""
    names = list(all_keys())
    last = name.rpartition(".")[2]
    same_ending = [known for known in names if known.rpartition(".")[2] == last]
    # The right name in a wrong group, or without one, beats any likeness of letters.
    if same_ending and "." not in name:
        return sorted(same_ending, key=lambda known: known.count("."))[:_MAX_SUGGESTIONS]
    if same_ending:
        return difflib.get_close_matches(name, same_ending, _MAX_SUGGESTIONS, 0.0)
    # The key of a group within a group has letters in common with any name that has a dot.
    deepest = max(1, name.count("."))
    likely = [known for known in names if known.count(".") <= deepest]
    return difflib.get_close_matches(name, likely, _MAX_SUGGESTIONS, _CLOSE_ENOUGH)


def _groups(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(group):
        if setting_of(field) is None:
            inner = getattr(group, field.name)
            yield prefix + field.name, inner
            yield from _groups(inner, f"{prefix}{field.name}.")


def _walk(group: Any, prefix: str) -> Iterator[Key]:
    hints = typing.get_type_hints(type(group))
    for field in dataclasses.fields(group):
        name, value, setting = prefix + field.name, getattr(group, field.name), setting_of(field)
        if setting is None:
            yield from _walk(value, name + ".")
        else:
            yield Key(name=name, type=hints[field.name], default=value, setting=setting)


_TYPE_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    type(None): "null",
    Any: "anything",
}


def _type_words(annotation: Any) -> str:
    if annotation in _TYPE_WORDS:
        return _TYPE_WORDS[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type_words(argument) for argument in arguments)
    if origin is list:
        return "list" if arguments == (Any,) else f"list of {_type_words(arguments[0])}"
    assert origin is dict, f"no words for {annotation}"
    return "mapping of names to values"
