"""Composition with Hydra: chosen YAML files to one tree, the command line to values.

Hydra composes the groups and parses the grammar of overrides. `convert.py` checks the values,
because Hydra stops at the first unknown key, while all problems are to be listed at once.
"""

from __future__ import annotations

import copy
import functools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf_ray.config.keys.choices import choice_problem, conf_dir, group_choices
from rlhf_ray.config.keys.hints import means_stage
from rlhf_ray.config.keys.own_file import OwnFile, read_own_files
from rlhf_ray.config.keys.typed import parsed, takes_text, takes_texts
from rlhf_ray.config.schema import text_keys
from rlhf_ray.config.setting import lost_numbers, lost_numbers_of_yaml

# key=value, without the signs before and after a key that Hydra knows.
_ASSIGNMENT = re.compile(r"\+{0,2}(?P<key>[A-Za-z_][\w.-]*)=(?P<value>.*)", re.DOTALL)
_MAX_SHOWN = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Choices of files and values of keys from a command line, in its order.

    Attributes:
        knows_stage: false where the choice that says which stage is meant was refused.
        files: the user's own files, which come before choices and values.
    """

    choices: tuple[tuple[str, str], ...]
    values: tuple[tuple[str, Any], ...]
    knows_stage: bool
    files: tuple[OwnFile, ...] = ()

    @property
    def all_choices(self) -> tuple[tuple[str, str], ...]:
        """Choices of the files and of the command line; the last one of a group wins."""
        return (*(choice for file in self.files for choice in file.choices), *self.choices)

    @property
    def all_values(self) -> tuple[tuple[str, Any], ...]:
        """Values of the files and of the command line; the last one of a key wins."""
        of_files = [
            value for file in self.files for value in file.kept_and_overruled(self.choices)[0]
        ]
        return (*of_files, *self.values)


def parse_overrides(overrides: Sequence[str]) -> tuple[Request, list[str]]:
    """Separate `group=choice`, `key=value` and files; returns the request and its problems."""
    groups = group_choices()
    files, overrides, file_problems = read_own_files(overrides, groups)
    choices: list[tuple[str, str]] = []
    values: list[tuple[str, Any]] = []
    problems = [problem for _, problem in file_problems]
    refused = [choice for choice, _ in file_problems]
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
            or (choice_problem(key, value, groups) if is_choice else None)
        )
        if problem is not None:
            problems.append(problem)
            refused.append((key, str(value)))
        elif is_choice:
            choices.append((key, "null" if value is None else str(value)))
        else:
            values.append((key, value))
    problems += _plan_problem([name for group, name in choices if group == "stage"])
    told = [*(choice for file in files for choice in file.choices), *choices]
    request = Request(
        choices=tuple(choices),
        values=tuple(values),
        knows_stage=_knows_stage(refused, told, groups),
        files=files,
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
        if is_choice[key] and (problem := choice_problem(key, value, groups))
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
    # Hydra has no null for a group on its command line; it is that of conf/config.yaml.
    last = dict(choices)
    told = tuple(pair for pair in choices if "null" not in (pair[1], last[pair[0]]))
    return copy.deepcopy(_composed(conf_dir(), told))


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
    others = tuple(choice for choice in choices if choice != ("stage", "plan"))
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


def _plan_problem(stages: Sequence[str]) -> Iterator[str]:
    """The problem of a plan and another stage on one command line: the last one would be run."""
    others = [name for name in stages if name != "plan"]
    if others and len(others) < len(stages):
        yield (
            f"stage=plan stage={others[-1]}: are two stages; write stage={others[-1]} dry_run=true "
            f"for its plan"
        )


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
        for number, problem in lost_numbers_of_yaml(content):
            raise ValueError(f"{file} line {number}: {problem}")
