"""Summary of a stage that trains on examples (SFT, reward model, preferences): table and JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.observe.facts import duration
from rlhf_ray.observe.run_report import plain_table, write_files

_EVAL = "eval/"
_PERPLEXITY = "eval/perplexity"


@dataclass(frozen=True, kw_only=True, slots=True)
class FitSummary:
    """Results of the stage. None for a number that was not measured.

    Attributes:
        stage: name of the stage.
        num_steps: optimiser steps taken, including those before a resume.
        planned_steps: optimiser steps of a run without early stopping.
        epochs: number of passes over the samples.
        stopped_early: the run ended because the held-out loss no longer fell.
        loss_first, loss_last: loss of the first and of the last step, in nats.
        perplexity_before, perplexity_after: perplexity of the held-out rows, before the first step
            and for the resulting model.
        eval_before, eval_after: all held-out metrics at these two times, without `eval/`.
        num_held_out: rows behind the held-out metrics.
        best_step: step of the resulting model; None if it is the last one.
        trained_tokens: number of predicted tokens in the loss; of a reward model, which predicts
            none, the tokens that it reads.
        tokens_per_s: trained tokens per second of update time, without evaluations.
        total_s: sum of the steps' times.
        result: path of the trained model.
    """

    stage: str
    num_steps: int
    planned_steps: int
    epochs: float
    stopped_early: bool
    loss_first: float | None
    loss_last: float | None
    perplexity_before: float | None
    perplexity_after: float | None
    eval_before: dict[str, float]
    eval_after: dict[str, float]
    num_held_out: int
    best_step: int | None
    trained_tokens: int
    tokens_per_s: float | None
    total_s: float
    result: str


def summarize_fit(
    metrics: Sequence[Mapping[str, float]],
    *,
    stage: str,
    planned_steps: int,
    num_held_out: int,
    best_step: int | None,
    result: Path,
) -> FitSummary:
    """Sum up the metrics of all steps, in order, as `read_metrics` returns them.

    Args:
        num_held_out: rows behind the held-out metrics.
        best_step: step of the resulting model; None for the last one.
        result: path of the trained model.
    """
    before = _eval_metrics([row for row in metrics if row["step"] == 0])
    steps = [row for row in metrics if row["step"] > 0]
    chosen = [row for row in steps if best_step is None or row["step"] == best_step]
    after = _eval_metrics(chosen)
    tokens = sum(row.get("tokens/trained", 0.0) for row in steps)
    update_s = sum(row.get("time/update_s", 0.0) for row in steps)
    num_steps = int(steps[-1]["step"]) if steps else 0
    return FitSummary(
        stage=stage,
        num_steps=num_steps,
        planned_steps=planned_steps,
        epochs=steps[-1].get("train/epochs", 0.0) if steps else 0.0,
        stopped_early=num_steps < planned_steps,
        loss_first=_finite(steps[:1], "train/loss"),
        loss_last=_finite(steps[-1:], "train/loss"),
        perplexity_before=before.get(_PERPLEXITY.removeprefix(_EVAL)),
        perplexity_after=after.get(_PERPLEXITY.removeprefix(_EVAL)),
        eval_before=before,
        eval_after=after,
        num_held_out=num_held_out,
        best_step=best_step,
        trained_tokens=int(tokens),
        tokens_per_s=tokens / update_s if tokens and update_s > 0 else None,
        total_s=sum(row.get("time/step_s", 0.0) for row in metrics),
        result=str(result),
    )


def fit_table(summary: FitSummary) -> str:
    """The summary as a plain-text table and a line with the result; no newline at the end."""
    return plain_table(_rows(summary), result=summary.result)


def write_fit_summary(output_dir: Path, summary: FitSummary) -> None:
    """Write summary.txt and summary.json."""
    write_files(output_dir, dataclasses.asdict(summary), fit_table(summary))


def _rows(summary: FitSummary) -> list[tuple[str, str]]:
    early = ", stopped early" if summary.stopped_early else ""
    rows = [
        ("stage", summary.stage),
        ("optimiser steps", f"{summary.num_steps} of {summary.planned_steps}{early}"),
        ("epochs", f"{summary.epochs:.2f}"),
        ("loss, first step", _number(summary.loss_first, ".4f")),
        ("loss, last step", _number(summary.loss_last, ".4f")),
    ]
    names = sorted({*summary.eval_before, *summary.eval_after})
    rows += [
        (
            f"held-out {name.replace('_', ' ')}",
            f"{_held_out(name, summary.eval_before)} before, "
            f"{_held_out(name, summary.eval_after)} after",
        )
        for name in names
    ]
    if names:
        rows.append(("held-out rows", f"{summary.num_held_out:,}"))
    best = "last" if summary.best_step is None else f"step {summary.best_step}, the best"
    return [
        *rows,
        ("model", best),
        (_tokens_of(summary.stage), f"{summary.trained_tokens:,}"),
        ("tokens per second", _number(summary.tokens_per_s, ".0f")),
        ("time, all steps", duration(summary.total_s)),
    ]


def _held_out(name: str, metrics: Mapping[str, float]) -> str:
    # A new head gives every answer the same score, and probabilities of a tie say nothing.
    if name == "calibration_error" and metrics.get("margin") == 0.0:
        return "n/a (ties)"
    return _number(metrics.get(name), ".4f")


def _tokens_of(stage: str) -> str:
    """Name of `tokens/trained`: a reward model predicts no token, and reads whole samples."""
    if stage == "reward_model":
        return "tokens read, prompts included"
    return "tokens learnt from"


def _eval_metrics(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The finite held-out metrics of the last of these rows."""
    last = rows[-1] if rows else {}
    return {
        name.removeprefix(_EVAL): value
        for name, value in last.items()
        if name.startswith(_EVAL) and math.isfinite(value)
    }


def _finite(rows: Sequence[Mapping[str, float]], name: str) -> float | None:
    value = rows[0].get(name, math.nan) if rows else math.nan
    return value if math.isfinite(value) else None


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
