"""Figures that a pipeline reports: which names lead to one, for every stage that writes numbers."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhf_ray.config.keys.listing import there_are
from rlhf_ray.config.run import Config
from rlhf_ray.observe.fit_report import FitSummary
from rlhf_ray.observe.run_report import RunSummary

# Of one model in evaluation.json, and of one form in compression.json; a test compares them.
MODEL_FIGURES = (
    *("num_prompts", "failed_prompts", "greedy", "sampled", "kl", "perplexity", "lm_eval"),
)
FORM_FIGURES = (
    *("seconds", "bytes", "zero_share", "perplexity", "runs_here", "tokens_per_s", "reward"),
    "win_rate",
)
# Next to the models in evaluation.json.
_OF_EVALUATION = ("prompts", "sampling", "settings")
_UNCOMPRESSED = "original"
_STAGES_WITH_FIGURES = "pretrain, sft, reward_model, preference, rl, evaluate and compress"


def figure_problem(config: Config, path: Sequence[str]) -> str | None:
    """The reason why a path leads to no figure of a stage, with the names that do; None if it may.

    Names that only a run knows, such as parts of its reward, are not looked at.

    Args:
        config: of the stage.
    """
    levels = _levels(config, path)
    if not levels:
        return (
            f"stage={config.stage.name} leaves no figures; take one of a stage that does: "
            f"{_STAGES_WITH_FIGURES}"
        )
    for depth, (names, ends) in enumerate(levels):
        if depth == len(path):
            return f"more names have to follow: {', '.join(names)}"
        if path[depth] not in names:
            return missing_figure(path[: depth + 1], names)
        if path[depth] in ends:
            extra = ".".join(path[depth + 1 :])
            return f"{path[depth]} is a number, and {extra} leads to nothing" if extra else None
    return None


def missing_figure(path: Sequence[str], names: Iterable[str]) -> str:
    """A sentence about the last name of a path, which is not among the names that are there."""
    names = list(names)
    close = difflib.get_close_matches(path[-1], names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    there = ", ".join(names) or "nothing"
    return f"there is no {'.'.join(path)}; {there_are(hint, there, verb='is')}"


def find_figure(values: Any, path: Sequence[str]) -> float:
    """The figure at a path.

    Raises:
        KeyError: there is none; the argument is a sentence with the names that are there.
    """
    for depth, name in enumerate(path):
        names = list(values) if isinstance(values, Mapping) else []
        if name not in names:
            raise KeyError(missing_figure(path[: depth + 1], names))
        values = values[name]
    if isinstance(values, Mapping):
        raise KeyError(f"{'.'.join(path)} is no number; add one of: {', '.join(values)}")
    if not isinstance(values, int | float):
        raise KeyError(f"{'.'.join(path)} is {values!r}, and no number")
    return float(values)


def _levels(config: Config, path: Sequence[str]) -> list[tuple[Sequence[str], Sequence[str]]]:
    """Names at every depth of the path that are known before the run, and those of numbers."""
    name = config.stage.name
    if config.is_fit or name == "rl":
        numbers, mappings = _fields(FitSummary if config.is_fit else RunSummary)
        return [((*numbers, *mappings), numbers)]
    if name == "evaluate":
        models = tuple(config.evaluation.models)
        modes = {"greedy": config.evaluation.greedy, "sampled": config.evaluation.samples > 0}
        figures = [figure for figure in MODEL_FIGURES if modes.get(figure, True)]
        top = (("models", *_OF_EVALUATION), ())
        if path[0] in _OF_EVALUATION:
            return [top]
        return [top, (models, ()), (figures, ("num_prompts", "failed_prompts"))]
    if name == "compress":
        forms = (_UNCOMPRESSED, *config.compress.methods)
        numbers = [figure for figure in FORM_FIGURES if figure not in ("reward", "win_rate")]
        return [(("forms",), ()), (forms, ()), (FORM_FIGURES, numbers)]
    return []


def _fields(summary: type) -> tuple[list[str], list[str]]:
    """Names of the numbers of a summary, and of its mappings to numbers."""
    hints = typing.get_type_hints(summary)
    kinds = {field.name: str(hints[field.name]) for field in dataclasses.fields(summary)}
    mappings = [name for name, kind in kinds.items() if kind.startswith("dict")]
    numbers = [
        name for name, kind in kinds.items() if "str" not in kind and not kind.startswith("dict")
    ]
    return numbers, mappings
