"""The groups of YAML files, and what is wrong with the choice of one of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_ray.config.keys.hints import choice_hint
from rlhf_ray.config.keys.listing import there_are

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


def choice_problem(group: str, value: Any, groups: Mapping[str, list[str]]) -> str | None:
    if value is None or value in groups[group]:
        return None
    hint = choice_hint(group, str(value), groups) or _file_hint(group, str(value))
    return f"{group}={value}: no such choice; {there_are(hint, groups[group])}"


def _file_hint(group: str, value: str) -> str:
    """Words on files of one's own, if a path was given; empty for other values."""
    if not (value.endswith((".yaml", ".yml")) or "/" in value):
        return ""
    return f"{group}=NAME takes no path: write --config {value} for a file of your own. "
