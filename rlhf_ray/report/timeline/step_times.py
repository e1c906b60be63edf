"""Reading of spans.jsonl: when the driver and every worker were at work in a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rlhf_ray.observe.spans.span_log import FILE_NAME
from rlhf_ray.report.curves import split_ranges
from rlhf_ray.report.forgiving_reads import ReadNotes, is_number, read_lines

# Steps that a report keeps in memory; it shows fewer where the page is too large.
MAX_STEPS = 200
# Workers of one role that a report shows in a step: those at work longest and shortest.
_LONGEST, _SHORTEST = 8, 4
Kept = TypeVar("Kept")
# Begin, end, number of calls.
Times = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTimes:
    """Times of one step, in milliseconds since it began.

    Attributes:
        began_at: seconds since 1970.
        ms: length of the step.
        phases: name, begin and end of every phase of the driver, in order.
        workers: by worker and phase.
    """

    step: int
    began_at: float
    ms: int
    phases: Sequence[tuple[str, int, int]]
    workers: Mapping[str, Mapping[str, Sequence[Times]]]


def read_step_times(
    folder: Path, notes: ReadNotes, *, first: int = 0, last: int | None = None
) -> Iterator[StepTimes]:
    """Yield the recorded steps from `first` to `last`, in the order of the file.

    A resumed run writes a step again: see `forget_from`.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return
    for row, _ in read_lines(path, notes):
        step = row.get("step")
        if not is_number(step) or step < first or (last is not None and step > last):
            continue
        if (found := _step_times(int(step), row)) is None:
            notes.add(f"{FILE_NAME}: lines of another form are left out")
        else:
            yield found


def shown_step_times(folder: Path, notes: ReadNotes) -> list[dict[str, Any]]:
    """The steps for a report, with few workers of every role; evenly spread over a long run."""
    steps: dict[int, dict[str, Any]] = {}
    for times in read_step_times(folder, notes):
        forget_from(times.step, steps)
        steps[times.step] = _shown(times)
        # Thinned when there are twice as many, so that a long run takes no more memory.
        if len(steps) > 2 * MAX_STEPS:
            steps = {step: steps[step] for step in list(steps)[::2]}
    return thinned(list(steps.values()), MAX_STEPS)


def forget_from(step: int, steps: dict[int, Kept]) -> list[Kept]:
    """Take out the steps that a resumed run does again: this one and those after it.

    Args:
        steps: in order.
    """
    again: list[Kept] = []
    while steps and next(reversed(steps)) >= step:
        again.append(steps.popitem()[1])
    return again


def thinned(steps: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most so many steps, evenly, with the last one."""
    return [steps[stop - 1] for _, stop in split_ranges(len(steps), most)]


def role_of(worker: str) -> str:
    """The role in the name of a worker: `generator` of `generator_3.2`."""
    return worker.rpartition("_")[0] or worker


def order_of(worker: str) -> tuple[str, int, str]:
    """Sort key: by role, then by number."""
    number = worker.rpartition("_")[2].partition(".")[0]
    return (role_of(worker), int(number) if number.isdecimal() else 0, worker)


def _shown(times: StepTimes) -> dict[str, Any]:
    by_role: dict[str, list[str]] = {}
    for worker in sorted(times.workers, key=order_of):
        by_role.setdefault(role_of(worker), []).append(worker)
    chosen: list[str] = []
    for workers in by_role.values():
        ranked = sorted(workers, key=lambda worker: -_busy_ms(times.workers[worker]))
        if len(ranked) > _LONGEST + _SHORTEST:
            ranked = [*ranked[:_LONGEST], *ranked[-_SHORTEST:]]
        chosen += sorted(ranked, key=order_of)
    return {
        "step": times.step,
        "ms": times.ms,
        "phases": times.phases,
        "workers": [[worker, times.workers[worker]] for worker in chosen],
        "left_out": len(times.workers) - len(chosen),
    }


def _busy_ms(by_phase: Mapping[str, Sequence[Times]]) -> int:
    return sum(end - begin for found in by_phase.values() for begin, end, _ in found)


def _step_times(step: int, row: Mapping[str, Any]) -> StepTimes | None:
    """The times of a line; None if it is of another form."""
    try:
        return StepTimes(
            step=step,
            began_at=float(row["began_at"]),
            ms=int(row["ms"]),
            phases=[(str(name), int(a), int(b)) for name, a, b in row["phases"]],
            workers={
                str(worker): {
                    str(phase): [(int(a), int(b), int(calls)) for a, b, calls in found]
                    for phase, found in by_phase.items()
                }
                for worker, by_phase in row["workers"].items()
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
