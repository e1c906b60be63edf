"""Conversion of a tree of plain values to a `Config`, with a list of all problems."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
import re
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from rlhf_ray.config.earlier_release import renamed_key
from rlhf_ray.config.keys.foreign_values import value_hint
from rlhf_ray.config.keys.hints import hint_of_keys, meant_keys, remark_on
from rlhf_ray.config.keys.stage_entries import STAGES, set_in_stages, told_stages
from rlhf_ray.config.paths import unshowable
from rlhf_ray.config.run import Config
from rlhf_ray.config.schema import Key, all_keys, group_names, leaves, nearest_keys
from rlhf_ray.config.setting import lost_number, not_text, value_of_no_key
from rlhf_ray.config.stages import STAGE_NAMES

# Longer values are cut in messages.
_MAX_SHOWN = 80
# The last part of keys whose text is one name or address.
_NAMES = frozenset({"host", "licence", "name", "python", "resume"})
# The name of another key as a value, in the only form whose keys are known without resolving it.
_REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")
_NAME_ENDINGS = ("url", "_dir", "_variable", "_name", "_column", "_path")


class Conversion:
    """Values by key, each checked against the schema.

    Attributes:
        problems: sentences, in the order of their detection.
        unknown: keys that are not in the schema.
        broken: keys whose value was refused; they keep their default.

    Args:
        knows_stage: the stage in the tree is the one that is meant, for hints about keys.
    """

    def __init__(self, *, knows_stage: bool = True) -> None:
        self._knows_stage = knows_stage
        self.problems: list[str] = []
        self.unknown: list[str] = []
        self.broken: set[str] = set()
        self._keys = all_keys()
        self._values = {name: copy.deepcopy(key.default) for name, key in self._keys.items()}
        # Keys to convert. Defaults are valid already, except for references to other keys.
        self._told = {name for name, value in self._values.items() if "${" in str(value)}

    def set_tree(self, tree: Mapping[str, Any]) -> None:
        """Set the values of a nested mapping, such as a composed YAML file."""
        for name, value in leaves(tree, ""):
            self.set_value(name, value)

    def set_value(self, name: str, value: Any) -> None:
        """Set one key; a name inside a mapping (`group.mapping.name`) sets that entry."""
        if (wrong := value_of_no_key(value)) is not None:
            self.broken.add(name)
            self.problems.append(f"{name}={shown(value)}: {not_text(wrong)}")
        elif name in self._keys:
            self._values[name] = told_stages(self._values[name], value) if name == STAGES else value
            self._told.add(name)
        elif name in group_names():
            self._set_group(name, value)
        elif (mapping := self._enclosing_mapping(name)) is not None:
            inner = name[len(mapping) + 1 :]
            if mapping == STAGES:
                set_in_stages(self._values[mapping], inner, value)
            else:
                _set_entry(self._values[mapping], inner.split("."), value)
            self._told.add(mapping)
        else:
            self.unknown.append(name)
            stage = self._values["stage.name"]
            is_known = self._knows_stage and stage in STAGE_NAMES
            self.problems.append(_unknown_key(name, stage if is_known else None))

    def finish(self) -> Config:
        """Resolve interpolations and convert; refused values go to `problems`."""
        tree = self._tree()
        config: Config = pickle.loads(_pickled_config())
        for name, key in self._keys.items():
            if name not in self._told:
                continue
            try:
                value = _converted(key, tree)
            except _WrongValueError as error:
                self.broken.add(name)
                self.problems.append(str(error))
                value = copy.deepcopy(key.default)
            group, _, last = name.rpartition(".")
            setattr(attrgetter(group)(config) if group else config, last, value)
        return config

    def _tree(self) -> DictConfig:
        """The values to convert, and the keys that they name by `${...}`."""
        needed, waiting = set[str](), set(self._told)
        while waiting:
            text = str(self._values[name := waiting.pop()])
            needed.add(name)
            if "${" in _REFERENCE.sub("", text):
                # A resolver, a relative or nested name: it may read any key.
                needed = set(self._keys)
                break
            named = set(_REFERENCE.findall(text))
            if not named <= set(self._keys):
                needed = set(self._keys)
                break
            waiting |= named - needed
        return OmegaConf.create(_nested({name: self._values[name] for name in needed}))

    def _set_group(self, name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            self.set_tree({name: value})
        elif value is not None:  # An empty group in YAML is null.
            self.broken.add(name)
            example = next(key for key in self._keys if key.startswith(name + "."))
            self.problems.append(
                f"{name}={shown(value)}: {name} is a group of keys; set them one by one, "
                f"as in {example}=..."
            )

    def _enclosing_mapping(self, name: str) -> str | None:
        for key in self._keys.values():
            if key.is_mapping and name.startswith(key.name + "."):
                return key.name if isinstance(self._values[key.name], dict) else None
        return None


# A command and its tests convert hundreds of configurations. What follows is made once, and is
# read in a tenth of the time that making it, or `copy.deepcopy` of it, takes.
@functools.cache
def _pickled_config() -> bytes:
    return pickle.dumps(Config())


@functools.cache
def _typed_field(name: str) -> DictConfig:
    """A structured configuration with one field, `value`, of the key's type."""
    field = ("value", all_keys()[name].type, dataclasses.field(default=MISSING))
    return OmegaConf.structured(dataclasses.make_dataclass("Typed", [field]))


def show_problems(problems: Sequence[str]) -> str:
    """Join sentences to one message."""
    if len(problems) == 1:
        return f"the configuration is wrong: {problems[0]}"
    lines = "".join(f"\n  - {problem}" for problem in problems)
    return f"the configuration is wrong in {len(problems)} places:{lines}"


def _set_entry(mapping: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for name in path[:-1]:
        inner = mapping.setdefault(name, {})
        if not isinstance(inner, dict):
            inner = mapping[name] = {}
        mapping = inner
    mapping[path[-1]] = value


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        _set_entry(nested, name.split("."), value)
    return nested


class _WrongValueError(ValueError):
    """A value that its key does not take."""


def _converted(key: Key, tree: DictConfig) -> Any:
    """The value of a key in `tree`, resolved and of the key's type.

    Raises:
        _WrongValueError: the value is refused; the message says why.
    """
    try:
        value = OmegaConf.select(tree, key.name, throw_on_missing=True)
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True)
    except MissingMandatoryValue as error:
        raise _WrongValueError(f"{key.name} is not set: {key.setting.help}") from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise _WrongValueError(
            f"{key.name}: {reason}; ${{...}} must name a key of this configuration"
        ) from error
    # OmegaConf takes any number for true, and true for 1.
    is_truth = isinstance(value, bool)
    if (key.takes(bool) and isinstance(value, int | float) and not is_truth) or (
        is_truth and (key.takes(int) or key.takes(float)) and not key.takes(bool)
    ):
        raise _WrongValueError(f"{key.name}={shown(value)}: must be {_expected(key)}")
    if isinstance(value, str) and (problem := _unshowable(key, value)):
        raise _WrongValueError(f"{key.name}={shown(value)}: {problem}")
    if key.takes(float) and (problem := _lost(value)):
        raise _WrongValueError(f"{key.name}={shown(value)}: {problem}")
    if problem := _number_as_text(key, value):
        raise _WrongValueError(f"{key.name}={shown(value)}: {problem}")
    field = _typed_field(key.name)
    try:
        OmegaConf.update(field, "value", value, merge=False)
    except OmegaConfBaseException as error:
        expected = _expected(key, value)
        raise _WrongValueError(f"{key.name}={shown(value)}: must be {expected}") from error
    typed = field["value"]
    if OmegaConf.is_config(typed):
        typed = OmegaConf.to_object(typed)
    violation = key.setting.violation(typed)
    if violation is not None:
        unit = f" ({key.setting.unit})" if key.setting.unit else ""
        hint = value_hint(key.name, typed, key.setting)
        raise _WrongValueError(f"{key.name}={shown(value)}: {violation}{unit}{hint}")
    return typed


def _lost(value: Any) -> str | None:
    """The problem with a number that becomes another as a float, or None."""
    if isinstance(value, str):
        return lost_number(value)
    # As text a whole number of any size is exact.
    is_other = isinstance(value, int) and (abs(value) > 2**1023 or float(value) != value)
    if not is_other:
        return None
    return "a number here keeps 15 to 17 digits, and would not be this one; write it with fewer"


def _number_as_text(key: Key, value: Any) -> str | None:
    """The problem with a number or truth where text is wanted; None without one.

    Values of the command line are text already.
    """
    values = [value] if key.is_text and not (key.takes(int) or key.takes(float)) else []
    if isinstance(value, list) and key.type == list[str]:
        values = value
    elif isinstance(value, dict) and key.type == dict[str, str]:
        values = list(value.values())
    wrong = next((item for item in values if isinstance(item, int | float)), None)
    return None if wrong is None else not_text(wrong)


def _unshowable(key: Key, value: str) -> str | None:
    """The problem with a text that is a name, an address or a path, or None."""
    last = key.name.rpartition(".")[2]
    is_name = key.setting.is_path or last in _NAMES or last.endswith(_NAME_ENDINGS)
    return unshowable(value) if is_name else None


def _unknown_key(name: str, stage: str | None) -> str:
    if new := renamed_key(name):
        return f"{name}: this key is now called {new}"
    near = meant_keys(name, stage) or nearest_keys(name)
    if near:
        return f"{name}: unknown key; {hint_of_keys(near, stage)}{remark_on(name, near, stage)}"
    return f"{name}: unknown key; `python -m rlhf_ray.main --cfg job` prints all of them"


def _expected(key: Key, value: Any = "") -> str:
    words = key.type_words()
    if words.startswith("list"):
        return f"a {words}, as in '{key.name}=[a,b]'"
    if key.is_mapping:
        return f"a {words}, as in '{key.name}={{a:1,b:2}}'"
    if value is None and words == "text":
        return "text, in quotes where the text is null"
    return words if words.startswith(("true", "text")) else f"a {words}"


def shown(value: Any) -> str:
    """Format a value as on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
