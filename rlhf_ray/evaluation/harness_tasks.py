"""Tasks of lm-evaluation-harness: settings, checks, results."""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_ray.config.errors import RequestError
from rlhf_ray.data.scalars import python_value

_ERROR = "_stderr"


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessTasks:
    """Settings of the harness.

    Attributes:
        names: names of tasks or task groups.
        folder: folder with YAML files of more tasks; None for the harness's own only.
        limit: number of questions per task; None for all.
        shots: examples before each question; None for the task's default.
        uses_chat_template: format a question as a user message.
        max_tokens: limit of question and answer together; None for the model's limit.
    """

    names: tuple[str, ...]
    folder: str | None
    limit: int | None
    shots: int | None
    uses_chat_template: bool
    max_tokens: int | None


def check_tasks(tasks: HarnessTasks) -> None:
    """Refuse unknown tasks, or an environment without the harness.

    Raises:
        RequestError: names the unknown task and similar names, or what to install.
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
                f"evaluation.lm_eval_tasks: there is no task {name!r}{hint} Put your own tasks "
                f"as YAML files in evaluation.lm_eval_path"
            )


def import_task_manager(tasks: HarnessTasks) -> Any:
    """Make the harness's `TaskManager`.

    The harness's own tasks are thousands of files, which are read only if they are needed.
    """
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    if tasks.folder is not None:
        own = TaskManager(include_path=tasks.folder, include_defaults=False)
        if set(tasks.names) <= set(own.all_tasks):
            return own
    return TaskManager(include_path=tasks.folder)


def task_results(found: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the return value of `simple_evaluate` to its form in evaluation.json.

    Returns:
        For each task `num_samples`, `num_fewshot` and `metrics`. Each metric has `mean` and
        `standard_error`, null if unknown. A metric after a filter is named "metric/filter".
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
    """A finite number, or None; the harness writes "N/A" for an unknown one."""
    value = python_value(value)
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_number else None
