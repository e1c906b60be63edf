"""From a command line to a `Config`: compose, convert, check. The only entry point."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from typing import Any

import yaml
from omegaconf import OmegaConf

from rlhf_ray.config.by_stage.default_rates import default_rates, set_default_rates
from rlhf_ray.config.compose import Request, compose_tree, parse_overrides, sort_values
from rlhf_ray.config.convert import Conversion, show_problems
from rlhf_ray.config.errors import ConfigError
from rlhf_ray.config.keys.choices import conf_dir
from rlhf_ray.config.keys.own_file import ARGUMENT
from rlhf_ray.config.keys.roles import unstarted_notes
from rlhf_ray.config.keys.unread import (
    first_names,
    single_values,
    unread_note,
    unread_problems,
)
from rlhf_ray.config.keys.values import shown
from rlhf_ray.config.paths import absolute, absolute_if_found, path_problem
from rlhf_ray.config.rules.table import cross_field_problems
from rlhf_ray.config.run import Config
from rlhf_ray.config.schema import all_keys, path_keys

__all__ = ["load_config", "load_values", "notes_of_files", "read_config", "to_yaml"]


def load_config(overrides: Sequence[str]) -> Config:
    """Load a complete configuration that can be run.

    Args:
        overrides: `group=choice` and `key=value`, in Hydra's grammar; the last one wins.

    Raises:
        ConfigError: the configuration is wrong; the message lists every problem.
    """
    return _load(*parse_overrides(overrides), is_complete=True)


def load_values(values: Mapping[str, Any]) -> Config:
    """Like `load_config`, for choices and values in a mapping: `{"stage": "sft", "seed": 1}`.

    Names of keys may have dots, and values of groups may be mappings.
    """
    return _load(*sort_values(values), is_complete=True)


def notes_of_files(overrides: Sequence[str], config: Config) -> list[str]:
    """Notes about what the chosen recipe, or a file of the user's own, sets in vain."""
    request, _ = parse_overrides(overrides)
    notes: list[str | None] = []
    recipe = dict(request.all_choices).get("recipe", "null")
    file = conf_dir() / "recipe" / f"{recipe}.yaml"
    if file.is_file():
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        notes.append(
            unread_note(
                config.stage.name, f"recipe={recipe}", content if isinstance(content, dict) else {}
            )
        )
    for own in request.files:
        kept, overruled = own.kept_and_overruled(request.choices)
        notes.append(_overruled_note(own.path, overruled, request, config))
        # A file with all keys, such as config.yaml of an output folder, has what would be there.
        told = {
            key: value
            for key, value in single_values(kept)
            if key not in all_keys() or value != attrgetter(key)(_chosen(request.all_choices))
        }
        notes.append(unread_note(config.stage.name, f"{ARGUMENT}{own.path}", told))
    return [note for note in notes if note]


def _overruled_note(
    path: str, overruled: Sequence[tuple[str, Any]], request: Request, config: Config
) -> str | None:
    """The note about values of a file in whose place a choice of the command line comes."""
    names = [
        key
        for key, value in single_values(overruled)
        if key in all_keys() and value != attrgetter(key)(config)
    ]
    if not names:
        return None
    groups = ", ".join(
        f"{group}={name}" for group, name in request.choices if group not in ("stage", "recipe")
    )
    return (
        f"note: {groups} comes in the place of what {ARGUMENT}{path} says of it: "
        f"{first_names(names)}"
    )


@functools.lru_cache(maxsize=8)
def _chosen(choices: tuple[tuple[str, str], ...]) -> Config:
    """The configuration of chosen files alone."""
    request = Request(choices=choices, values=(), knows_stage=True)
    return _load(request, [], is_complete=False)


def notes_of_parts(overrides: Sequence[str], config: Config) -> list[str]:
    """Notes about keys of the command line whose part, such as the critic, the run lacks."""
    request, _ = parse_overrides(overrides)
    return unstarted_notes(config, request.values)


def read_config(overrides: Sequence[str]) -> Config:
    """Like `load_config`, without the rules between keys and for required values.

    For displaying a configuration that is not complete yet.
    """
    return _load(*parse_overrides(overrides), is_complete=False)


def rates_by_default(told: Sequence[str] | Mapping[str, Any]) -> tuple[str, ...]:
    """Keys of the learning rates that a request leaves to the default.

    Args:
        told: as for `load_config`, or for `load_values`.
    """
    request, _ = sort_values(told) if isinstance(told, Mapping) else parse_overrides(told)
    config = _converted(request).finish()
    return tuple(key for key in default_rates(config) if attrgetter(key)(config) is None)


def to_yaml(config: Config) -> str:
    """Convert to YAML that reads back to an equal configuration."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _load(request: Request, request_problems: list[str], *, is_complete: bool) -> Config:
    try:
        conversion = _converted(request)
    except ValueError as error:
        raise ConfigError(show_problems([*request_problems, str(error)])) from error
    config = conversion.finish()
    set_default_rates(config)
    problems = request_problems + conversion.problems
    if is_complete and request.knows_stage and "stage.name" not in conversion.broken:
        problems += unread_problems(config.stage.name, request.choices, request.values)
    # A rule that reads a refused value would only add noise.
    if is_complete and not (request_problems or conversion.unknown):
        problems += cross_field_problems(config, without=conversion.broken)
    if problems:
        raise ConfigError(show_problems(problems))
    if problems := _make_paths_absolute(config):
        raise ConfigError(show_problems(problems))
    return config


def _converted(request: Request) -> Conversion:
    """Every choice and value of a request, on the defaults of the schema.

    Raises:
        ValueError: a chosen file cannot be composed.
    """
    conversion = Conversion(knows_stage=request.knows_stage)
    conversion.set_tree(compose_tree(request.all_choices))
    for name, value in request.all_values:
        conversion.set_value(name, value)
    return conversion


def _make_paths_absolute(config: Config) -> list[str]:
    """Make paths absolute, because workers run in other folders; returns the problems with them."""
    problems: list[str] = []
    config.output_dir = _absolute("output_dir", config.output_dir, problems)
    if config.resume not in ("auto", "never"):
        config.resume = _absolute("resume", config.resume, problems)
    for key in path_keys():
        group, _, name = key.name.rpartition(".")
        values = vars(attrgetter(group)(config))
        values[name] = _located(key.name, values[name], key.setting.keywords, problems)
    return problems


def _located(name: str, value: Any, keywords: Collection[str], problems: list[str]) -> Any:
    """Make a path, or all paths of a mapping, absolute."""
    if isinstance(value, dict):
        return {
            inner: _located(f"{name}.{inner}", path, keywords, problems)
            for inner, path in value.items()
        }
    if value is None or value in keywords:
        return value
    if problem := path_problem(value):
        problems.append(f"{name}={shown(value)}: {problem}")
        return value
    return absolute_if_found(value)


def _absolute(name: str, folder: str, problems: list[str]) -> str:
    """Make a folder absolute; other values stay, for the rules to refuse and messages to show."""
    if not folder.strip() or "://" in folder:
        return folder
    # Whether the output folder can be made is found out where it is made.
    if problem := path_problem(folder):
        problems.append(f"{name}={shown(folder)}: {problem}")
        return folder
    return absolute(folder)
