"""Entries of `reward.functions`: names, weights, arguments, and places of the functions."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.config.earlier_release import moved_path
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.reward import RewardFunctionConfig, ScorerPart

BUILTIN_TARGETS: dict[str, str] = {
    "arithmetic": "rlhf_ray.rewards.builtin.arithmetic:Arithmetic",
    "exact_match": "rlhf_ray.rewards.builtin.exact_match:ExactMatch",
    "length": "rlhf_ray.rewards.builtin.length:Length",
    "lines": "rlhf_ray.rewards.builtin.lines:Lines",
    "regular_expression": "rlhf_ray.rewards.builtin.regular_expression:RegularExpression",
}


_KEYS = ("path", "name", "weight", "arguments")
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
# A part's name becomes the metric reward/<name>; these are metrics of the whole reward.
_RESERVED_NAMES = ("mean", "std", "baseline")
_WAYS = (
    f"name a built-in ({', '.join(BUILTIN_TARGETS)}), package.module:function or "
    "path/file.py:function"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FunctionTarget:
    """Place of a function: a Python file or a module, and the name in it."""

    file: Path | None
    module: str
    attribute: str

    def __str__(self) -> str:
        return f"{self.file or self.module}:{self.attribute}"


def read_functions(
    functions: Sequence[Any], scorers: Sequence[ScorerPart] = ()
) -> tuple[RewardFunctionConfig, ...]:
    """Read the entries of `reward.functions` as full records. Imports nothing.

    Args:
        scorers: parts of the reward that no function computes. With a scorer, the functions
            may be empty.

    Raises:
        RequestError: an entry is malformed, or two parts have the same name.
    """
    if not functions and not scorers:
        raise RequestError(f"reward.functions is empty; {_WAYS}")
    taken = _names_of_scorers(scorers)
    entries = tuple(_read_entry(index, item) for index, item in enumerate(functions))
    first_with: dict[str, int] = {}
    for index, entry in enumerate(entries):
        if entry.name in first_with:
            raise RequestError(
                f"reward.functions[{first_with[entry.name]}] and [{index}] are both named "
                f"{entry.name!r}; give one of them another `name`"
            )
        if entry.name in taken:
            raise RequestError(
                f"reward.functions[{index}] and {taken[entry.name]} are both named "
                f"{entry.name!r}; give one of them another `name`"
            )
        first_with[entry.name] = index
    if not any(part.weight for part in (*entries, *scorers)):
        raise RequestError(
            "every part of the reward has weight 0, so every reward would be 0; give at least one "
            "entry of reward.functions, or another part of the reward, a different weight"
        )
    return entries


def _names_of_scorers(scorers: Sequence[ScorerPart]) -> dict[str, str]:
    """Configuration group of every scorer, by the name of its part."""
    taken: dict[str, str] = {}
    for part in scorers:
        name = _read_name(part.group, part.name)
        if name in taken:
            raise RequestError(
                f"{taken[name]} and {part.group} are both named {name!r}; give one of them a `name`"
            )
        taken[name] = part.group
    return taken


def parse_target(path: str) -> FunctionTarget:
    """Split the `path` of an entry.

    Raises:
        RequestError: the path is neither a built-in nor of a known form, or is the path of an
            earlier release.
    """
    path = BUILTIN_TARGETS.get(path, path)
    if new := moved_path(path):
        raise RequestError(f"{path!r} has moved; write {new!r}")
    location, colon, attribute = path.rpartition(":")
    if not colon:
        near = nearest(path, BUILTIN_TARGETS)
        raise RequestError(f"there is no built-in reward {path!r}{near}; {_WAYS}")
    if not attribute.isidentifier():
        raise RequestError(
            f"{path!r} names no function: {attribute!r} after the colon is not a name; {_WAYS}"
        )
    if location.endswith(".py"):
        return FunctionTarget(file=Path(location).expanduser(), module="", attribute=attribute)
    if not all(part.isidentifier() for part in location.split(".")):
        raise RequestError(f"{location!r} in {path!r} is neither a module nor a .py file; {_WAYS}")
    return FunctionTarget(file=None, module=location, attribute=attribute)


def nearest(name: str, names: Iterable[str]) -> str:
    """Suggest the nearest name, as in ", did you mean 'x'"; empty without a similar name."""
    found = difflib.get_close_matches(name, list(names), n=1)
    return f", did you mean {found[0]!r}" if found else ""


def _read_entry(index: int, item: Any) -> RewardFunctionConfig:
    where = f"reward.functions[{index}]"
    if isinstance(item, RewardFunctionConfig):
        item = {key: getattr(item, key) for key in _KEYS}
    if isinstance(item, str):
        item = {"path": item}
    if not isinstance(item, Mapping):
        raise RequestError(f"{where} is {item!r}; {_WAYS}, or a mapping with {', '.join(_KEYS)}")
    for key in item:
        if key not in _KEYS:
            raise RequestError(
                f"{where} has the unknown key {key!r}{nearest(str(key), _KEYS)}; the keys are "
                f"{', '.join(_KEYS)} (arguments of the function go under `arguments`)"
            )
    path = item.get("path")
    if not isinstance(path, str) or not path:
        raise RequestError(f"{where}.path is {path!r}; {_WAYS}")
    try:
        default_name = path if path in BUILTIN_TARGETS else parse_target(path).attribute
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from error
    return RewardFunctionConfig(
        path=path,
        name=_read_name(where, item.get("name", default_name)),
        weight=_read_weight(where, item.get("weight", 1.0)),
        arguments=_read_arguments(where, item.get("arguments", {})),
    )


def _read_name(where: str, name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(
            f"{where}.name is {name!r}; it becomes the metric reward/<name>, so use letters, "
            "digits, '_', '-' and '.'"
        )
    if name in _RESERVED_NAMES:
        raise RequestError(
            f"{where}.name is {name!r}, but reward/{name} is the metric of the whole reward; "
            "set `name` to something else"
        )
    return name


def _read_weight(where: str, weight: Any) -> float:
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not math.isfinite(weight):
        raise RequestError(f"{where}.weight is {weight!r}; it must be a finite number")
    return float(weight)


def _read_arguments(where: str, arguments: Any) -> dict[str, Any]:
    if not isinstance(arguments, Mapping) or not all(isinstance(key, str) for key in arguments):
        raise RequestError(
            f"{where}.arguments is {arguments!r}; it must be a mapping of argument names to values"
        )
    return dict(arguments)
