"""Alarms about a run: signs of hacked rewards, lost signal, drift and stalls.

An alarm is a hint to look, with the numbers that raised it. Its thresholds are in its function.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rlhf_ray.report.rollouts.answer_measures import StepMeasures

Rows = Sequence[Mapping[str, float]]
# Fewer steps have no trend.
MIN_STEPS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """All that alarms look at.

    Attributes:
        rows: metrics of every step, in order.
        measures: of the answers that were read, in order of steps.
        prompts_per_step: groups that a step asks for; None where it is not known.
    """

    rows: Rows
    measures: Sequence[StepMeasures] = ()
    prompts_per_step: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AlarmFinding:
    """The answer of one alarm.

    Attributes:
        state: "alarm", "quiet", or "not checked" with the reason as text.
    """

    name: str
    state: str
    text: str = ""


class NotCheckedError(Exception):
    """An alarm has too little to look at; the argument says what is missing."""


# Looks at the evidence: words for an alarm, None for quiet. Raises NotCheckedError.
Check = Callable[[Evidence], str | None]


def check_all(checks: Mapping[str, Check], evidence: Evidence) -> list[AlarmFinding]:
    """The findings of all checks: alarms first, then what was quiet, then what was not checked."""
    findings: list[AlarmFinding] = []
    for name, check in checks.items():
        try:
            words = check(evidence)
        except NotCheckedError as missing:
            findings.append(AlarmFinding(name=name, state="not checked", text=str(missing)))
        else:
            state = "quiet" if words is None else "alarm"
            findings.append(AlarmFinding(name=name, state=state, text=words or ""))
    order = ("alarm", "quiet", "not checked")
    return sorted(findings, key=lambda finding: order.index(finding.state))


def series(rows: Rows, name: str, *, at_least: int = MIN_STEPS) -> list[float]:
    """The finite values of a metric, in order.

    Raises:
        NotCheckedError: there are fewer than `at_least`.
    """
    values = finite(row.get(name, math.nan) for row in rows)
    if len(values) < at_least:
        raise NotCheckedError(f"{name} has {len(values)} values, and {at_least} are needed")
    return values


def finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def ends(values: Sequence[float]) -> tuple[float, float]:
    """Medians of the first and of the last fifth, of at least two values each."""
    size = max(2, len(values) // 5)
    return statistics.median(values[:size]), statistics.median(values[-size:])


def rise(values: Sequence[float]) -> float:
    """Change from the first to the last fifth, in units of the noise from value to value.

    The noise is the median step between neighbours, so that a trend does not count as noise. 0 for
    a constant.
    """
    first, last = ends(values)
    steps = [abs(b - a) for a, b in itertools.pairwise(values)]
    noise = statistics.median(steps) if steps else 0.0
    if noise == 0.0:
        noise = max((max(values) - min(values)) / 10, 1e-12)
    return (last - first) / noise


def middle_of(measures: Sequence[StepMeasures], share: str, *, least: int = 1) -> list[float]:
    """A share of every step that was read; see `StepMeasures.shares`.

    Raises:
        NotCheckedError: fewer steps than `least` have it.
    """
    found = [shares[share] for m in measures if share in (shares := m.shares())]
    if len(found) < least:
        raise NotCheckedError(f"rollouts of {len(found)} steps were read, and {least} are needed")
    return found
