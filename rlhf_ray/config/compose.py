"""Composition with Hydra: chosen YAML files to one tree, the command line to values.

Hydra composes the groups and parses the grammar of overrides. `convert.py` checks the values,
because Hydra stops at the first unknown key, while all problems are to be listed at once.
"""

from __future__ import annotations

import copy
import functools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf_ray.config.keys.hints import choice_hint, means_stage
from rlhf_ray.config.keys.listing import there_are
from rlhf_ray.config.keys.typed import parsed, takes_text, takes_texts
from rlhf_ray.config.schema import text_keys
from rlhf_ray.config.setting import lost_numbers

# key=value, without the signs before and after a key that Hydra knows.
_ASSIGNMENT = re.compile(r"\+{0,2}(?P<key>[A-Za-z_][\w.-]*)=(?P<value>.*)", re.DOTALL)
_MAX_SHOWN = 80
_PACKAGE_DIR = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Choices of files and values of keys from a command line, in its order.

    Attributes:
        knows_stage: false where the choice that says which stage is meant was refused.
    """

    choices: tuple[tuple[str, str], ...]
    values: tuple[tuple[str, Any], ...]
    knows_stage: bool


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


def parse_overrides(overrides: Sequence[str]) -> tuple[Request, list[str]]:
    """Separate `group=choice` from `key=value`; returns the request and its problems."""
    groups = group_choices()
    choices: list[tuple[str, str]] = []
    values: list[tuple[str, Any]] = []
    problems: list[str] = []
    refused: list[tuple[str, str]] = []
    for text in overrides:
        try:
            override, value = parsed(text)
        except HydraException:
            literal = _literal(text)
            if literal is None:
                problems.append(_not_understood(text))
            else:
                values.append(literal)
            continue
        except RecursionError:
            problems.append(f"{text[:_MAX_SHOWN]}...: brackets are nested too deeply")
            continue
        key = override.key_or_group
        is_choice = key in groups and not isinstance(value, dict)
        problem = (
            _form_problem(text, override)
            or _text_problem(text, key, value)
            or _number_problem(text, key)
            or (_choice_problem(key, value, groups) if is_choice else None)
        )
        if problem is not None:
            problems.append(problem)
            refused.append((key, str(value)))
        elif is_choice:
            choices.append((key, "null" if value is None else str(value)))
        else:
            values.append((key, value))
    request = Request(
        choices=tuple(choices),
        values=tuple(values),
        knows_stage=_knows_stage(refused, choices, groups),
    )
    return request, problems


def sort_values(values: Mapping[str, Any]) -> tuple[Request, list[str]]:
    """Like `parse_overrides`, for choices and values in a mapping."""
    groups = group_choices()
    is_choice = {
        key: key in groups and not isinstance(value, dict) for key, value in values.items()
    }
    found = {
        key: problem
        for key, value in values.items()
        if is_choice[key] and (problem := _choice_problem(key, value, groups))
    }
    choices = [(key, str(value)) for key, value in values.items() if is_choice[key]]
    request = Request(
        choices=tuple(choice for choice in choices if choice[0] not in found),
        values=tuple((key, value) for key, value in values.items() if not is_choice[key]),
        knows_stage=_knows_stage([(key, str(values[key])) for key in found], choices, groups),
    )
    return request, list(found.values())


def _knows_stage(
    refused: Sequence[tuple[str, str]],
    choices: Sequence[tuple[str, str]],
    groups: Mapping[str, Sequence[str]],
) -> bool:
    """Whether the stage is the one that is meant; a recipe may choose it."""
    if any(means_stage(group, value, groups) for group, value in refused):
        return False
    return "recipe" not in dict(refused) or "stage" in dict(choices)


def compose_tree(choices: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Compose `conf/config.yaml` with the chosen groups; interpolations stay as they are.

    Raises:
        ValueError: a file is malformed, or names a group or choice that does not exist.
    """
    return copy.deepcopy(_composed(conf_dir(), tuple(choices)))


# A pipeline and its stages read the same files many times.
@functools.lru_cache(maxsize=64)
def _composed(folder: Path, choices: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    tree = _compose(folder, choices)
    chosen = dict(choices).get("stage")
    if chosen is None:
        return tree
    if chosen != _stage(tree):
        raise ValueError(
            f"stage={chosen}: a chosen file sets stage.name={_stage(tree)}, which would win; "
            f"choose the stage there with `override /stage: {_stage(tree)}` under `defaults:`"
        )
    others = tuple(choice for choice in choices if choice[0] != "stage")
    if chosen == "plan" and (own := _stage(_compose(folder, others))) != "rl":
        raise ValueError(
            f"stage=plan: it describes stage=rl, and what is chosen here is stage={own}; leave "
            f"stage=plan out and add dry_run=true"
        )
    return tree


def _stage(tree: Mapping[str, Any]) -> Any:
    stage = tree.get("stage")
    return stage.get("name") if isinstance(stage, dict) else stage


def _compose(folder: Path, choices: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    try:
        with initialize_config_dir(config_dir=str(folder), version_base="1.3"):
            tree = compose("config", overrides=[f"{group}={choice}" for group, choice in choices])
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        message = " ".join(str(error).split())
        raise ValueError(f"the files under {folder} do not compose: {message}") from error
    _check_numbers(folder)
    container = OmegaConf.to_container(tree, resolve=False)
    assert isinstance(container, dict), f"{folder}/config.yaml is not a mapping"
    return {str(key): value for key, value in container.items()}


def _not_understood(text: str) -> str:
    if "=" not in text:
        return f"{text}: is not of the form key=value; write KEY=VALUE"
    return (
        f"{text}: the value cannot be read; put values with spaces, commas, brackets or = in "
        f"quotes, as in {_quoted(text)}"
    )


def _quoted(text: str) -> str:
    """The argument as a shell takes it, with the value in Hydra's quotes."""
    key, _, value = text.partition("=")
    plain = value.strip("'\"")
    # In Hydra's quotes a backslash counts as itself, but for those before a quote.
    inner = re.sub(r'(\\*)"', lambda found: found[1] * 2 + r"\"", plain)
    inner += "\\" * (len(inner) - len(inner.rstrip("\\")))
    return shlex.quote(f'{key}="{inner}"')


def _literal(text: str) -> tuple[str, str] | None:
    """Key and value of a text that Hydra's grammar does not have, if the key takes any text.

    Paths have letters of all languages, and signs that mean something in the grammar.
    """
    found = _ASSIGNMENT.fullmatch(text)
    if found is None or not takes_text(found["key"]) or found["value"][:1] in ("'", '"'):
        return None
    return found["key"], found["value"]


def _form_problem(text: str, override: Override) -> str | None:
    """The problem of an override in a form of Hydra's grammar that is not supported here."""
    if not override.key_or_group:
        return f"{text}: is not of the form key=value"
    if override.type is OverrideType.DEL:
        return f"{text}: keys cannot be removed; set a value, or null if the key allows it"
    if override.is_sweep_override():
        other = (
            f"write {_quoted(text)} for one text"
            if takes_text(override.key_or_group)
            else ("write [a,b] for a list")
        )
        return f"{text}: one run takes one value; start one run for each, or {other}"
    if override.package is not None:
        return f"{text}: groups have a fixed place; write {override.key_or_group}=NAME"
    return None


def _text_problem(text: str, key: str, value: Any) -> str | None:
    """The problem of brackets that Hydra takes for a list or a mapping where a text is wanted."""
    if not (isinstance(value, list | dict) and key in text_keys()):
        return None
    return f"{text}: must be text; if the brackets belong to it, write {_quoted(text)}"


def _number_problem(text: str, key: str) -> str | None:
    """The problem with a number that Hydra has read as another: 1e-400 as 0."""
    if takes_texts(key):
        return None
    problem = next(lost_numbers(text.partition("=")[2]), None)
    return problem and f"{text[:_MAX_SHOWN]}: {problem}"


def _check_numbers(folder: Path) -> None:
    """Refuse files with numbers that YAML reads as others.

    Raises:
        ValueError: names file, line and number.
    """
    for file in sorted(folder.rglob("*.yaml")):
        content = file.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(content.splitlines(), start=1):
            for problem in lost_numbers(re.sub(r"(^|\s)#.*", "", line)):
                raise ValueError(f"{file} line {number}: {problem}")


def _choice_problem(group: str, value: Any, groups: Mapping[str, list[str]]) -> str | None:
    if value is None or value in groups[group]:
        return None
    hint = choice_hint(group, str(value), groups) or _file_hint(group, str(value))
    return f"{group}={value}: no such choice; {there_are(hint, groups[group])}"


def _file_hint(group: str, value: str) -> str:
    """Words on the place of a group's files, if a path was given; empty for other values."""
    if not (value.endswith((".yaml", ".yml")) or "/" in value):
        return ""
    name = Path(value).stem
    return (
        f"{group}=NAME takes no path: copy the file to {conf_dir() / group}/{name}.yaml, and write "
        f"{group}={name}. "
    )
