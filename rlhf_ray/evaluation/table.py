"""Table that compares models side by side: a row for each measure, a column for each model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_ray.evaluation.answers import MODES
from rlhf_ray.observe.markdown import markdown_table

_NOTHING = "-"
# Measures of a model as a whole, not of its greedy or sampled answers.
_OF_MODELS = (
    ("KL to the reference, nats per token", ("kl", "per_token")),
    ("KL to the reference, nats per answer", ("kl", "per_answer")),
    ("perplexity of demonstrations", ("perplexity", "value")),
)


def side_by_side(report: Mapping[str, Any]) -> str:
    """Aligned Markdown table of the content of evaluation.json; no newline at the end."""
    models = report["models"]
    names = list(models)
    marked = [f"{name} (baseline)" if name == report["baseline"] else name for name in names]
    rows = [("", marked), *_rows(models, names)]
    # A measure that no model has gets no row.
    rows = [(title, cells) for title, cells in rows if set(cells) != {_NOTHING}]
    return markdown_table([_cells(row) for row in rows])


def _rows(
    models: Mapping[str, Mapping[str, Any]], names: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    columns = [models[name] for name in names]
    for mode in MODES:
        modes = [column[mode] for column in columns]
        for title, path in _measures(modes):
            yield f"{mode}: {title}", [_shown(_at(m, path)) for m in modes]
    for title, path in _OF_MODELS:
        yield title, [_shown(_at(column, path)) for column in columns]
    standard = {
        (task, name): None
        for column in columns
        for task, found in column["lm_eval"].items()
        for name in found["metrics"]
    }
    for task, name in standard:
        path = ("lm_eval", task, "metrics", name)
        yield f"lm-eval {task}: {name}", [_shown(_at(column, path)) for column in columns]
    yield "prompts without a result", [str(c["failed_prompts"]) for c in columns]


def _measures(modes: Sequence[Mapping[str, Any] | None]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Titles of the rows, and the paths of their values in a mode's description."""
    yield "reward", ("reward",)
    for name in _names(modes, "reward_parts"):
        yield f"reward part {name}", ("reward_parts", name)
    tasks = _names(modes, "tasks")
    for task in tasks if len(tasks) > 1 else ():
        yield f"reward, task {task}", ("tasks", task)
    yield "wins against the baseline", ("win_rate",)
    yield "share that succeeds", ("success_share",)
    for k in _names(modes, "pass_at_k"):
        yield f"pass@{k}", ("pass_at_k", k)
    yield "tokens of an answer", ("length",)
    yield "share cut off", ("truncated_share",)
    yield "share of repeated n-grams", ("repeated_share",)
    for n in _names(modes, "distinct"):
        yield f"distinct-{n}", ("distinct", n)


def _names(modes: Sequence[Mapping[str, Any] | None], key: str) -> list[str]:
    return list(dict.fromkeys(name for mode in modes if mode for name in mode[key]))


def _at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        if value is None:
            return None
        value = value.get(key)
    return value


def _shown(value: Any) -> str:
    """Format a number, an estimate with its error, or a win rate with its interval."""
    if value is None:
        return _NOTHING
    if isinstance(value, float):
        return f"{value:.4g}"
    if value["mean"] is None:
        return _NOTHING
    mean = f"{value['mean']:.4g}"
    if "low" in value:
        has_interval = value["low"] is not None
        return f"{mean} [{value['low']:.3g}, {value['high']:.3g}]" if has_interval else mean
    error = value["standard_error"]
    return mean if error is None else f"{mean} ± {error:.2g}"


def _cells(row: tuple[str, Sequence[str]]) -> list[str]:
    title, cells = row
    return [_escaped(title), *(_escaped(cell) for cell in cells)]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
