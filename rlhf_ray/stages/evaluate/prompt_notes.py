"""Lines on the prompts of an evaluation, and on models that were trained on them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.stages import FIT_STAGES
from rlhf_ray.models.card import Origin, read_origin, shown_name

# Models that a model comes from, one after the other: more than any pipeline has.
_MAX_RUNS = 16
_READ_BY_RL = (("data.path", "data.split"), ("texts.path", "texts.split"))
_READ_BY_FIT = (("examples.path", "examples.split"),)
_CHOSEN_BY = (("evaluation.path", "evaluation.split"),)
# Folder, in that of a run, of the models of its best evaluations.
_BEST = "best"


def prompt_line(prompts: Mapping[str, Any]) -> str:
    """The name and number of the prompts.

    Args:
        prompts: `path`, `split` and `num_prompts`, as in evaluation.json.
    """
    path, split, number = (prompts[key] for key in ("path", "split", "num_prompts"))
    of_split = f", split {split}" if split else ""
    return f"Prompts: {shown_name(str(path))}{of_split}: {number:,} prompts"


def prompt_notes(prompts: Mapping[str, Any], models: Mapping[str, str]) -> list[str]:
    """A line for each model that has learnt from the prompts, or was chosen by them.

    Known are the sources of its run and of the runs before it, from their folders. Another file
    with the same rows is not found: the rows of those runs are not read again.

    Args:
        prompts: see `prompt_line`.
        models: paths by name.
    """
    wanted = prompts["path"], prompts["split"]
    notes = []
    for name, path in models.items():
        learnt, chosen = _sources(path)
        if any(_is_same(one, wanted) for one in learnt):
            notes.append(
                f"note: {name} was trained on these prompts, so that its numbers say nothing about "
                f"new ones"
            )
        elif any(_is_same(one, wanted) for one in chosen):
            notes.append(
                f"note: {name} is the best of its run on these prompts (evaluation.keep_best), so "
                f"that its numbers are too good by that choice"
            )
    return notes


def _sources(model: str) -> tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]:
    """Paths and splits that a model and those before it learnt from, and were chosen by."""
    learnt: list[tuple[Any, Any]] = []
    chosen: list[tuple[Any, Any]] = []
    for origin, is_best in _origins(model):
        stage = origin.value("stage.name")
        if stage in FIT_STAGES:
            learnt += _values(origin, _READ_BY_FIT)
        elif stage == "rl":
            learnt += _values(origin, _READ_BY_RL)
            if is_best:
                chosen += _values(origin, _CHOSEN_BY)
    return learnt, chosen


def _values(origin: Origin, keys: tuple[tuple[str, str], ...]) -> list[tuple[Any, Any]]:
    return [(origin.value(path), origin.value(split)) for path, split in keys]


def _origins(model: str) -> Iterator[tuple[Origin, bool]]:
    """The run of a model, and those of the models that it started from; whether it was a best."""
    for _ in range(_MAX_RUNS):
        run = Path(model).expanduser().parent
        is_best = run.name == _BEST
        try:
            origin = read_origin(run.parent if is_best else run)
        except (RequestError, OSError):  # Files of someone else's, which a note must not depend on.
            return
        yield origin, is_best
        before = origin.value("model.path")
        if not isinstance(before, str) or before == model:
            return
        model = before


def _is_same(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    (path, split), (wanted, wanted_split) = one, other
    if path is None or split != wanted_split:
        return False
    return path == wanted or _place(path) == _place(wanted)


def _place(path: Any) -> str:
    return os.path.realpath(os.path.expanduser(str(path)))
