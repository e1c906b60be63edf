"""Summary of an RL run: a table for people, JSON for scripts."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from rlhf_ray.atomic_file import write_atomically
from rlhf_ray.observe.facts import duration, is_critic_warmup

FIRST_STEPS = 3
LAST_STEPS = 10
_TABLE_WIDTH = 100
# Metrics `reward/...` that are statistics of the whole reward, not parts of it.
_PART, _NOT_PARTS = "reward/", ("mean", "std", "baseline")
_LEAST_PHASE_S = 0.005
_PHASES = ("generate", "score", "reference", "update", "publish")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """Results of a run. None for a metric that no step had.

    Attributes:
        first_step, last_step: range of the summarised steps.
        num_first_steps, num_last_steps: steps of the means at both ends, see `windows`.
        reward_first: mean reward of the first `num_first_steps` steps.
        reward_last: mean reward of the last `num_last_steps` steps.
        reward_best, reward_best_step: largest mean reward of a step, and that step.
        parts_first, parts_last: mean of every part of the reward over the same steps.
        value_loss_first, value_loss_last: mean loss of the critic over the same steps.
        critic_warmup_steps: steps in which the critic alone was trained.
        staleness_max: largest staleness of a trained token, in versions.
        kl_last: mean KL divergence of an answer to the reference over the last steps, in nats.
        total_s: sum of the steps' times.
        step_s: mean time of a step.
        phase_s: mean time per phase of a step.
        tokens_per_s: generated tokens per second of a step.
        probe_gap_max: largest log-probability gap of all fidelity probes, in nats.
        failed_groups: groups without a reward.
        lost_engines: engines that were lost while the run went on.
        lost_ranks: ranks of roles that train, likewise.
        result: path of the trained model.
    """

    num_steps: int
    first_step: int | None
    last_step: int | None
    num_first_steps: int
    num_last_steps: int
    reward_first: float | None
    reward_last: float | None
    reward_best: float | None
    reward_best_step: int | None
    parts_first: dict[str, float]
    parts_last: dict[str, float]
    value_loss_first: float | None
    value_loss_last: float | None
    critic_warmup_steps: int
    staleness_max: float | None
    kl_last: float | None
    total_s: float | None
    step_s: float | None
    phase_s: dict[str, float]
    tokens_per_s: float | None
    probe_gap_max: float | None
    failed_groups: int
    lost_engines: int
    lost_ranks: int
    result: str


def summarize(
    metrics: Sequence[Mapping[str, float]],
    *,
    result: Path,
    lost_engines: int = 0,
    lost_ranks: int = 0,
) -> RunSummary:
    """Sum up the metrics of all steps, in order, as `read_metrics` returns them.

    Args:
        result: path of the trained model.
        lost_engines: engines that were lost while the run went on.
        lost_ranks: ranks of roles that train, likewise.
    """
    rewards = [
        (row["reward/mean"], int(row["step"]))
        for row in metrics
        if math.isfinite(row.get("reward/mean", math.nan))
    ]
    values = [reward for reward, _ in rewards]
    first, last = windows(len(metrics))
    first_values, last_values = windows(len(values))
    best, best_step = max(rewards, key=lambda pair: pair[0]) if rewards else (None, None)
    times_s = _values(metrics, "time/step_s")
    phases = {name: _mean(_values(metrics, f"time/{name}_s")) for name in _PHASES}
    tokens = sum(_values(metrics, "tokens/generated"))
    return RunSummary(
        num_steps=len(metrics),
        first_step=int(metrics[0]["step"]) if metrics else None,
        last_step=int(metrics[-1]["step"]) if metrics else None,
        num_first_steps=first,
        num_last_steps=last,
        reward_first=_mean(values[:first_values]),
        reward_last=_mean(values[len(values) - last_values :]),
        reward_best=best,
        reward_best_step=best_step,
        parts_first=_parts(metrics[:first]),
        parts_last=_parts(metrics[len(metrics) - last :]),
        value_loss_first=_mean(_values(metrics[:first], "value/loss")),
        value_loss_last=_mean(_values(metrics[len(metrics) - last :], "value/loss")),
        critic_warmup_steps=sum(map(is_critic_warmup, metrics)),
        staleness_max=max(_values(metrics, "rollout/staleness_max"), default=None),
        kl_last=_mean(_values(metrics[len(metrics) - last :], "kl/reference")),
        total_s=sum(times_s) if times_s else None,
        step_s=_mean(times_s),
        # The phase "reference" takes no time in a run without anything to score.
        phase_s={
            name: seconds
            for name, seconds in phases.items()
            if seconds is not None and (name != "reference" or seconds >= _LEAST_PHASE_S)
        },
        tokens_per_s=tokens / sum(times_s) if tokens and sum(times_s) > 0 else None,
        probe_gap_max=max(_values(metrics, "publish/probe_gap_max"), default=None),
        failed_groups=int(sum(_values(metrics, "rollout/failed_groups"))),
        lost_engines=lost_engines,
        lost_ranks=lost_ranks,
        result=str(result),
    )


def windows(num_steps: int) -> tuple[int, int]:
    """Numbers of first and of last steps that are compared.

    At most `FIRST_STEPS` and `LAST_STEPS`; they share a step only in a run of one.
    """
    first = min(FIRST_STEPS, max(1, num_steps // 2), num_steps)
    return first, min(LAST_STEPS, max(1, num_steps - first), num_steps)


def summary_table(summary: RunSummary) -> str:
    """The summary as a plain-text table and a line with the result; no newline at the end."""
    return plain_table(_rows(summary), result=summary.result)


def plain_table(rows: Sequence[tuple[str, str]], *, result: str) -> str:
    """Table of names and values, and a line with the result; no newline at the end."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False, title="Summary", title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    for name, value in rows:
        table.add_row(name, value)
    stream = io.StringIO()
    console = Console(file=stream, width=_TABLE_WIDTH, color_system=None, force_terminal=False)
    console.print(table)
    lines = (line.rstrip() for line in stream.getvalue().splitlines())
    # The result stands outside the table, which would fold a long path so that it cannot be copied.
    return "\n".join([*(line for line in lines if line), f"Result: {result}"])


def write_summary(output_dir: Path, summary: RunSummary) -> None:
    """Write summary.txt and summary.json."""
    write_files(output_dir, dataclasses.asdict(summary), summary_table(summary))


def write_files(output_dir: Path, values: Mapping[str, Any], table: str) -> None:
    """Write summary.json with the values and summary.txt with the table."""
    text = json.dumps(values, indent=2, allow_nan=False)
    write_atomically(output_dir / "summary.json", text + "\n")
    write_atomically(output_dir / "summary.txt", table + "\n")


def _rows(summary: RunSummary) -> list[tuple[str, str]]:
    steps = f"{summary.first_step} to {summary.last_step}" if summary.num_steps else "none"
    best = _number(summary.reward_best, ".3f")
    first, last = _number(summary.reward_first, ".3f"), _steps(summary.num_last_steps)
    more = summary.num_steps > 1
    rows = [
        ("steps", steps),
        *([("reward, first " + _steps(summary.num_first_steps), first)] if more else []),
        (f"reward, last {last}", _number(summary.reward_last, ".3f")),
        ("reward, best step", f"{best} (step {summary.reward_best_step})" if best != "-" else "-"),
        *_optional_rows(summary, last),
        ("time, all steps", "-" if summary.total_s is None else duration(summary.total_s)),
        ("time, mean step", _number(summary.step_s, ".2f", " s")),
    ]
    rows += [(f"  {name}", f"{seconds:.2f} s") for name, seconds in summary.phase_s.items()]
    return [
        *rows,
        ("generated tokens per second", _number(summary.tokens_per_s, ".0f")),
        ("largest probe gap", _number(summary.probe_gap_max, ".1e", " nats")),
        ("failed groups", str(summary.failed_groups)),
        *([("engines lost", str(summary.lost_engines))] if summary.lost_engines else []),
        *([("training ranks lost", str(summary.lost_ranks))] if summary.lost_ranks else []),
    ]


def _optional_rows(summary: RunSummary, last: str) -> list[tuple[str, str]]:
    """Rows of a run with a reference, with a critic, or with rollouts that are not fresh."""
    rows: list[tuple[str, str]] = []
    if summary.kl_last is not None:
        kl = _number(summary.kl_last, ".4g", " nats per answer")
        rows.append((f"KL to the reference, last {last}", kl))
    if summary.value_loss_last is not None:
        values = [_number(v, ".4g") for v in (summary.value_loss_first, summary.value_loss_last)]
        rows.append(("value loss, first and last steps", ", ".join(values)))
    if summary.critic_warmup_steps:
        rows.append(("critic warm-up, policy not trained", f"{summary.critic_warmup_steps} steps"))
    if summary.staleness_max:
        rows.append(("largest staleness", f"{summary.staleness_max:.0f} versions"))
    return rows


def _steps(number: int) -> str:
    """The steps that a mean is over."""
    return "step" if number == 1 else f"{number} steps"


def _parts(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every part of the reward, by name."""
    names = dict.fromkeys(name for row in metrics for name in row if name.startswith(_PART))
    means = {name.removeprefix(_PART): _mean(_values(metrics, name)) for name in names}
    return {
        name: value
        for name, value in means.items()
        if value is not None and name.split("/")[0] not in _NOT_PARTS
    }


def _values(metrics: Sequence[Mapping[str, float]], name: str) -> list[float]:
    """The finite values of one metric."""
    return [row[name] for row in metrics if name in row and math.isfinite(row[name])]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else format(value, form) + unit
