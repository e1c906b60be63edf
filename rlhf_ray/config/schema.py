"""The keys of the configuration, read from the dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_ray.config.run import Config
from rlhf_ray.config.setting import Setting, largest, setting_of

# Accepts a swapped letter or a missing group, refuses an unrelated word.
_CLOSE_ENOUGH = 0.6
_MAX_SUGGESTIONS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One key that takes a value.

    Attributes:
        name: dotted name, as on the command line.
        type: annotated type.
        default: value in a new `Config`.
        setting: help, unit and rule.
    """

    name: str
    type: Any
    default: Any
    setting: Setting

    @property
    def is_mapping(self) -> bool:
        """Whether the value maps names of the user's choice: `key.name=value`."""
        return typing.get_origin(self.type) is dict

    @property
    def is_text(self) -> bool:
        """Whether the value is text, or text or null."""
        return str in _kinds(self.type)

    def takes(self, kind: type) -> bool:
        """Whether the annotated type, or one of its union, is this type."""
        return kind in _kinds(self.type)

    def type_words(self) -> str:
        """The type in words: "whole number or null"."""
        return _type_words(self.type)


@functools.cache
def all_keys() -> Mapping[str, Key]:
    """Read every key that takes a value, by dotted name, in the order of the dataclasses.

    Made once, and so for reading only, its defaults too: hundreds of names are looked up in it for
    every configuration.
    """
    return types.MappingProxyType({key.name: key for key in _walk(Config(), "")})


def values_of(config: Config) -> dict[str, Any]:
    """Read the value of every key, by dotted name."""
    return {key.name: key.default for key in _walk(config, "")}


@functools.cache
def path_keys() -> tuple[Key, ...]:
    """Keys whose value may name a local file or folder."""
    return tuple(key for key in all_keys().values() if key.setting.is_path)


@functools.cache
def text_keys() -> frozenset[str]:
    """Names of the keys whose value is text."""
    return frozenset(name for name, key in all_keys().items() if key.is_text)


@functools.cache
def text_mappings() -> tuple[str, ...]:
    """Names of the keys that map names to texts."""
    return tuple(name for name, key in all_keys().items() if key.type == dict[str, str])


@functools.cache
def group_names() -> tuple[str, ...]:
    """Names of the groups of keys: training, reward, reward.model, ..."""
    return tuple(all_groups())


def all_groups() -> dict[str, Any]:
    """Read every group of keys, with its defaults, by dotted name."""
    return dict(_groups(Config(), ""))


def leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted names and values; mappings are entered only where the schema has a group."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if name in group_names() and isinstance(value, Mapping):
            yield from leaves(value, name + ".")
        else:
            yield name, value


def nearest_keys(name: str) -> list[str]:
    """Suggest known keys for an unknown name, the most likely first."""
    names = list(all_keys())
    last = name.rpartition(".")[2]
    same_ending = [known for known in names if known.rpartition(".")[2] == last]
    # The right name in a wrong group, or without a group, beats any similarity of letters.
    if same_ending and "." not in name:
        return sorted(same_ending, key=lambda known: known.count("."))[:_MAX_SUGGESTIONS]
    if same_ending:
        return difflib.get_close_matches(name, same_ending, _MAX_SUGGESTIONS, 0.0)
    # Deeper keys share letters with many names, so only keys up to the same depth count.
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
    hints = _types_of(type(group))
    for field in dataclasses.fields(group):
        name, value, setting = prefix + field.name, getattr(group, field.name), setting_of(field)
        if setting is None:
            yield from _walk(value, name + ".")
        else:
            kind = hints[field.name]
            yield Key(name=name, type=kind, default=value, setting=_bounded(name, kind, setting))


# Annotations are texts; to evaluate them takes most of the time of a walk.
@functools.cache
def _types_of(group: type) -> dict[str, Any]:
    return typing.get_type_hints(group)


@functools.cache
def _bounded(name: str, kind: Any, setting: Setting) -> Setting:
    """The setting with a maximum, if it is of a number and states none."""
    is_open = setting.maximum is None and setting.below is None and not setting.choices
    if not is_open or not {int, float} & set(_kinds(kind)):
        return setting
    most = largest(name, setting.unit)
    # A number of either sign is bounded on both sides.
    is_free = setting.minimum is None and setting.above is None
    return dataclasses.replace(setting, maximum=most, minimum=-most if is_free else setting.minimum)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The type, or the types of a union."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return typing.get_args(annotation)
    return (annotation,)


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
