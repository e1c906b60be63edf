"""From a command line to a `Config`: compose, convert, check. The only entry point."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlhf_ray.config.compose import (
    Request,
    compose_tree,
    conf_dir,
    parse_overrides,
    sort_values,
)
from rlhf_ray.config.convert import Conversion, show_problems
from rlhf_ray.config.errors import ConfigError
from rlhf_ray.config.rules.table import cross_field_problems
from rlhf_ray.config.run import Config
from rlhf_ray.config.schema import path_keys

__all__ = ["conf_dir", "load_config", "load_values", "read_config", "to_yaml"]


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


def read_config(overrides: Sequence[str]) -> Config:
    """Like `load_config`, without the rules between keys and for required values.

    For displaying a configuration that is not complete yet.
    """
    return _load(*parse_overrides(overrides), is_complete=False)


def to_yaml(config: Config) -> str:
    """Convert to YAML that reads back to an equal configuration."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _load(request: Request, request_problems: list[str], *, is_complete: bool) -> Config:
    conversion = Conversion()
    try:
        conversion.set_tree(compose_tree(request.choices))
    except ValueError as error:
        raise ConfigError(show_problems([*request_problems, str(error)])) from error
    for name, value in request.values:
        conversion.set_value(name, value)
    config = conversion.finish()
    problems = request_problems + conversion.problems
    # A rule that reads a refused value would only add noise.
    if is_complete and not (request_problems or conversion.unknown):
        problems += cross_field_problems(config, without=conversion.broken)
    if problems:
        raise ConfigError(show_problems(problems))
    _make_paths_absolute(config)
    return config


def _make_paths_absolute(config: Config) -> None:
    """Make paths absolute, because workers run in other folders."""
    config.output_dir = _absolute(config.output_dir)
    if config.resume not in ("auto", "never"):
        config.resume = _absolute(config.resume)
    for key in path_keys():
        group, _, name = key.name.rpartition(".")
        values = vars(attrgetter(group)(config))
        values[name] = _located(values[name], key.setting.keywords)


def _located(value: Any, keywords: Collection[str]) -> Any:
    """Make a path, or all paths of a mapping, absolute."""
    if isinstance(value, dict):
        return {name: _located(path, keywords) for name, path in value.items()}
    return value if value is None or value in keywords else _absolute_if_found(value)


def _absolute(folder: str) -> str:
    """Make a folder absolute; other values stay, for the rules to refuse and messages to show."""
    is_folder = folder.strip() and "://" not in folder
    return str(Path(folder).expanduser().absolute()) if is_folder else folder


def _absolute_if_found(path: str) -> str:
    """Make an existing path absolute; hub names, import paths and missing files stay."""
    local = Path(path).expanduser()
    return str(local.absolute()) if path and local.exists() else path
