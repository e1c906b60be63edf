"""The groups of YAML files, and what is wrong with the choice of one of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rlhf_ray.config.keys.hints import choice_hint
from rlhf_ray.config.keys.listing import there_are
from rlhf_ray.config.schema import leaves

_PACKAGE_DIR = Path(__file__).resolve().parents[2]


def conf_dir() -> Path:
    """The folder of the YAML files: inside the package in a wheel, next to it in a checkout."""
    inside = _PACKAGE_DIR / "conf"
    return inside if inside.is_dir() else _PACKAGE_DIR.parent / "conf"


def group_choices() -> dict[str, list[str]]:
    """Names of the files of every group: `{"algorithm": ["grpo", "ppo"], ...}`."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(conf_dir().iterdir())
        if folder.is_dir()
    }


def keys_of_choice(group: str, name: str) -> list[str]:
    """Keys that a file of a group sets; none if there is no such file."""
    file = conf_dir() / group / f"{name}.yaml"
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    content = yaml.safe_load(text) or {}
    prefix = "" if text.startswith("# @package _global_") else f"{group}."
    return [key for key, _ in leaves(content, prefix) if not key.startswith("defaults")]


def _optional_groups() -> set[str]:
    """Groups of which no file need be chosen."""
    content = yaml.safe_load((conf_dir() / "config.yaml").read_text(encoding="utf-8"))
    entries = [entry for entry in content["defaults"] if isinstance(entry, dict)]
    return {group for entry in entries for group, name in entry.items() if name is None}


def choice_problem(group: str, value: Any, groups: Mapping[str, list[str]]) -> str | None:
    if value in groups[group] or (value is None and group in _optional_groups()):
        return None
    if value is None:
        return f"{group}=null: there has to be one; there are: {', '.join(groups[group])}"
    hint = choice_hint(group, str(value), groups) or _file_hint(group, str(value))
    return f"{group}={value}: no such choice; {there_are(hint, groups[group])}"


def _file_hint(group: str, value: str) -> str:
    """Words on files of one's own, if a path was given; empty for other values."""
    if not (value.endswith((".yaml", ".yml")) or "/" in value):
        return ""
    return f"{group}=NAME takes no path: write --config {value} for a file of your own. "
