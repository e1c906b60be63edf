"""Tasks of lm-evaluation-harness: which there are, and what came of them."""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_ray.config.errors import RequestError

_ERROR = "_stderr"


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessTasks:
    """What the harness is asked for.

    Attributes:
        names: of tasks or groups of them.
        folder: with YAML files of tasks, beside those that come with it; None for no other.
        limit: questions of each task; None for all.
        shots: examples before each question; None as the task says.
        uses_chat_template: put a question as a message of the user.
        max_tokens: of question and answer; None takes what the model reads.
    """

    names: tuple[str, ...]
    folder: str | None
    limit: int | None
    shots: int | None
    uses_chat_template: bool
    max_tokens: int | None


def check_tasks(tasks: HarnessTasks) -> None:
    """Refuse tasks that there are not, or an environment without the harness.

    Raises:
        RequestError: says which, and what to install or what is near.
    """
    if not tasks.names:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise RequestError(
            f"evaluation.lm_eval_tasks={list(tasks.names)}: lm-evaluation-harness is not "
            f"installed; install rlhf_ray[lm-eval] on every node, or leave the tasks out"
        )
    known = import_task_manager(tasks).all_tasks
    for name in tasks.names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise RequestError(
                f"evaluation.lm_eval_tasks: there is no task {name!r}{hint} Tasks of your own are "
                f"YAML files in evaluation.lm_eval_path"
            )


def import_task_manager(tasks: HarnessTasks) -> Any:
    """The harness's `TaskManager`; it reads thousands of files only where they are needed."""
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    if tasks.folder is not None:
        own = TaskManager(include_path=tasks.folder, include_defaults=False)
        if set(tasks.names) <= set(own.all_tasks):
            return own
    return TaskManager(include_path=tasks.folder)


def task_results(found: Mapping[str, Any]) -> dict[str, Any]:
    """What `simple_evaluate` returned, as it is in evaluation.json.

    Returns:
        by task `num_samples`, `num_fewshot`, and `metrics`: by name `mean` and `standard_error`,
        null where there is none. A metric behind a filter is "metric/filter".
    """
    return {
        task: {
            "num_samples": found["n-samples"][task]["effective"]
            if task in found["n-samples"]
            else None,
            "num_fewshot": found["n-shot"].get(task),
            "metrics": _metrics(values),
        }
        for task, values in found["results"].items()
    }


def _metrics(values: Mapping[str, Any]) -> dict[str, Any]:
    metrics = {}
    for key, value in values.items():
        name, comma, kind = key.partition(",")
        if not comma or name.endswith(_ERROR):
            continue
        shown = name if kind == "none" else f"{name}/{kind}"
        error = values.get(f"{name}{_ERROR},{kind}")
        metrics[shown] = {"mean": _number(value), "standard_error": _number(error)}
    return metrics


def _number(value: Any) -> float | None:
    """The harness has "N/A" where it could not say."""
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_number else None
