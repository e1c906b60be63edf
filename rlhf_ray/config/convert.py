"""Conversion of a tree of plain values to a `Config`, with a list of all problems."""

from __future__ import annotations

import copy
import functools
import pickle
import re
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from rlhf_ray.config.earlier_release import renamed_key
from rlhf_ray.config.keys.hints import hint_of_keys, meant_keys, remark_on
from rlhf_ray.config.keys.stage_entries import STAGES, set_in_stages, told_stages
from rlhf_ray.config.keys.values import WrongValueError, shown, typed_scalar, typed_value
from rlhf_ray.config.run import Config
from rlhf_ray.config.schema import Key, all_keys, group_names, leaves, nearest_keys
from rlhf_ray.config.setting import not_text, value_of_no_key
from rlhf_ray.config.stages import STAGE_NAMES

# The name of another key as a value, in the only form whose keys are known without resolving it.
_REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")


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
                value = self._values[name]
                value = (
                    typed_scalar(name, value)
                    if _is_plain(value)
                    else typed_value(key, _read(key, tree))
                )
            except WrongValueError as error:
                self.broken.add(name)
                self.problems.append(str(error))
                value = copy.deepcopy(key.default)
            group, _, last = name.rpartition(".")
            setattr(attrgetter(group)(config) if group else config, last, value)
        return config

    def _tree(self) -> DictConfig:
        """The values that are no plain scalars, and the keys that they name by `${...}`."""
        needed = set[str]()
        waiting = {name for name in self._told if not _is_plain(self._values[name])}
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


def _is_plain(value: Any) -> bool:
    """Whether it is a scalar that refers to no other key, and so is what it is in any tree."""
    if isinstance(value, str):
        return "${" not in value and value != MISSING
    return value is None or isinstance(value, bool | int | float)


def _read(key: Key, tree: DictConfig) -> Any:
    """The value of a key in `tree`, resolved.

    Raises:
        WrongValueError: it is missing, or cannot be resolved.
    """
    try:
        value = OmegaConf.select(tree, key.name, throw_on_missing=True)
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True)
    except MissingMandatoryValue as error:
        raise WrongValueError(f"{key.name} is not set: {key.setting.help}") from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise WrongValueError(
            f"{key.name}: {reason}; ${{...}} must name a key of this configuration"
        ) from error
    return value


def _unknown_key(name: str, stage: str | None) -> str:
    if new := renamed_key(name):
        return f"{name}: this key is now called {new}"
    near = meant_keys(name, stage) or nearest_keys(name)
    if near:
        return f"{name}: unknown key; {hint_of_keys(near, stage)}{remark_on(name, near, stage)}"
    return f"{name}: unknown key; `python -m rlhf_ray.main --cfg job` prints all of them"
