"""A user's own file of settings, `--config FILE.yaml`, in the form of a recipe or of `--cfg job`.

defaults:                  # files of groups, as in conf/recipe; `algorithm: ppo` is the same
  - override /algorithm: ppo
num_steps: 200
training:
  learning_rate: 1e-6
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf_ray.config.keys.choices import choice_problem, keys_of_choice
from rlhf_ray.config.schema import leaves
from rlhf_ray.config.setting import lost_numbers_of_yaml

ARGUMENT = "--config="
_MOST_BYTES = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnFile:
    """Choices of files and values of keys, in the file's order.

    Attributes:
        path: as it was given.
    """

    path: str
    choices: tuple[tuple[str, str], ...]
    values: tuple[tuple[str, Any], ...]

    def kept_and_overruled(
        self, chosen: Sequence[tuple[str, str]]
    ) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
        """Single values that count, and those in whose place a choice of the command line comes.

        A group that is chosen there begins anew: half of one method and half of another would be
        neither. The stage is not what its keys are about, and a recipe is what a file is based on.
        """
        groups = [(group, name) for group, name in chosen if group not in ("stage", "recipe")]
        taken = {key for group, name in groups for key in keys_of_choice(group, name)}
        prefixes = tuple(f"{group}." for group, _ in groups)
        kept, overruled = [], []
        for key, value in leaves(dict(self.values), ""):
            is_taken = key in taken or (prefixes and key.startswith(prefixes))
            (overruled if is_taken else kept).append((key, value))
        return kept, overruled


def read_own_files(
    overrides: Sequence[str], groups: Mapping[str, list[str]]
) -> tuple[tuple[OwnFile, ...], list[str], list[tuple[tuple[str, str], str]]]:
    """Separate files from the other arguments.

    Args:
        groups: names of the files by group.

    Returns:
        the files; the other arguments; problems, each with the choice that it is of.
    """
    files: list[OwnFile] = []
    problems: list[tuple[tuple[str, str], str]] = []
    for text in overrides:
        if not text.startswith(ARGUMENT):
            continue
        try:
            file = _read(text.removeprefix(ARGUMENT), groups)
        except ValueError as error:
            problems.append((("recipe", text), str(error)))
            continue
        wrong = {
            (group, name): f"{text}: {problem}"
            for group, name in file.choices
            if (problem := _named_problem(group, name, groups))
        }
        problems += wrong.items()
        kept = tuple(choice for choice in file.choices if choice not in wrong)
        files.append(replace(file, choices=kept))
    return tuple(files), [one for one in overrides if not one.startswith(ARGUMENT)], problems


def _named_problem(group: str, name: str, groups: Mapping[str, list[str]]) -> str | None:
    if group not in groups:
        return f"defaults: there is no group {group}; there are: {', '.join(groups)}"
    return choice_problem(group, None if name == "null" else name, groups)


def _read(path: str, groups: Mapping[str, list[str]]) -> OwnFile:
    """Read a file of settings; names and values in it are not checked here.

    Args:
        groups: names of the files by group.

    Raises:
        ValueError: it cannot be read, or is no mapping of keys; says what to do.
    """
    content = _content(path)
    choices: dict[str, str] = {}
    values: list[tuple[str, Any]] = []
    defaults = content.pop("defaults", None) or ()
    if not isinstance(defaults, list | tuple):
        raise ValueError(f"{ARGUMENT}{path}: defaults: {defaults!r} is no list of GROUP: NAME")
    for entry in defaults:
        if not isinstance(entry, Mapping):
            if entry == "_self_":
                continue
            raise ValueError(
                f"{ARGUMENT}{path}: defaults: {entry!r} is not of the form GROUP: NAME"
            )
        for group, name in entry.items():
            plain = str(group).removeprefix("override ").strip().removeprefix("/")
            choices[plain] = "null" if name is None else str(name)
    for key, value in content.items():
        # What `--cfg job` and an output folder's config.yaml say of the stage is its name.
        is_stage = key == "stage" and isinstance(value, Mapping) and set(value) == {"name"}
        # A recipe of one's own has a name, too, which is none of the files.
        is_name = key == "recipe" and value not in groups["recipe"]
        if is_stage or (key in groups and not is_name and not isinstance(value, Mapping)):
            name = value["name"] if is_stage else value
            if name is not None:
                choices[str(key)] = str(name)
        else:
            values.append((str(key), value))
    return OwnFile(path=path, choices=tuple(choices.items()), values=tuple(values))


def _content(path: str) -> dict[Any, Any]:
    file = Path(path).expanduser()
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{ARGUMENT}{path}: has more than {_MOST_BYTES:,} bytes; no settings")
        text = file.read_text(encoding="utf-8")
        # The reader of the recipes, to which 1e-5 is a number.
        content = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except OSError as error:
        raise ValueError(f"{ARGUMENT}{path}: {error.strerror or error}; name a file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{ARGUMENT}{path}: is no text in UTF-8: {error.reason}") from error
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        words = " ".join(str(error).split())
        raise ValueError(f"{ARGUMENT}{path}: is no YAML of keys and values: {words}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{ARGUMENT}{path}: is no mapping of keys, as `num_steps: 20` is")
    for line, problem in lost_numbers_of_yaml(text):
        raise ValueError(f"{ARGUMENT}{path} line {line}: {problem}")
    return content
