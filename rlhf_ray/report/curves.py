"""Metrics as curves of few enough points, whatever the length of the run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhf_ray.report.forgiving_reads import ReadNotes

MAX_POINTS = 600
MAX_METRICS = 400
# Shown first where there are more metrics than a report holds: the numbers of every run.
_FIRST = (
    *("reward/", "eval/", "evaluation/", "train/", "policy/", "kl/", "rollout/", "publish/"),
    *("response/", "advantages/", "time/", "tokens/", "value/", "engine/"),
)
_DIGITS = 5


def make_curves(
    rows: Sequence[Mapping[str, float]],
    notes: ReadNotes,
    *,
    max_points: int = MAX_POINTS,
    max_metrics: int = MAX_METRICS,
) -> dict[str, Any]:
    """Curves of all metrics.

    A long run is cut into equal ranges of steps, and of each the extreme value is shown, the one
    farthest from the mean of its range: a spike of one step stays visible.

    Returns:
        `steps`, and `values`: of every metric one value per step, None where there is none.
    """
    names = sorted({name for row in rows for name in row if name != "step"}, key=_rank)
    if len(names) > max_metrics:
        notes.add(
            f"{len(names) - max_metrics} of {len(names)} metrics are not drawn; all are in "
            f"metrics.jsonl"
        )
        names = names[:max_metrics]
    ranges = split_ranges(len(rows), max_points)
    if len(ranges) < len(rows):
        notes.add(
            f"curves have {len(ranges)} points for {len(rows)} steps: each is the value farthest "
            f"from the mean of its steps"
        )
    return {
        "steps": [int(rows[stop - 1]["step"]) for _, stop in ranges],
        "values": {
            name: [_extreme(row.get(name, math.nan) for row in rows[a:b]) for a, b in ranges]
            for name in names
        },
    }


def split_ranges(length: int, most: int) -> list[tuple[int, int]]:
    """Cut `length` places into at most `most` ranges of about the same size, in order."""
    count = min(length, most)
    return [(i * length // count, (i + 1) * length // count) for i in range(count)]


def short(value: float, *, digits: int = _DIGITS) -> float | None:
    """A number with few digits for JSON; None if it is not finite."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def _extreme(values: Iterable[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    mean = math.fsum(finite) / len(finite)
    return short(max(finite, key=lambda value: abs(value - mean)))


def _rank(name: str) -> tuple[int, int, str]:
    """Sort key: the usual groups first, and short names before those of single tasks."""
    group = next((i for i, prefix in enumerate(_FIRST) if name.startswith(prefix)), len(_FIRST))
    return (name.count("/"), group, name)
