"""`python -m rlhf_ray.main trace RUN [STEPS]`: the times of a run's workers, for Perfetto."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from rlhf_ray.config.errors import RequestError
from rlhf_ray.observe.spans.span_log import FILE_NAME
from rlhf_ray.report.forgiving_reads import ReadNotes
from rlhf_ray.report.timeline.step_times import StepTimes, forget_from, read_step_times
from rlhf_ray.report.timeline.trace_file import num_events, write_trace

WORD = "trace"
# A browser opens a trace of this size within seconds.
MAX_EVENTS = 500_000
_STEPS = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


def run_trace(arguments: Sequence[str], say: Callable[[str], None]) -> int:
    """Write trace.json.gz of an output folder.

    Args:
        arguments: a folder and, if not all steps are wanted, a step or a range such as 3-8.
        say: shows a line.

    Returns:
        the exit status, 0.

    Raises:
        RequestError: the folder has no record of times, or none of these steps, or cannot be
            written.
    """
    if len(arguments) not in (1, 2):
        raise RequestError(
            f"trace takes an output folder, and steps if not all are wanted: trace outputs/demo "
            f"3-8; there were {len(arguments)} arguments"
        )
    folder = Path(arguments[0])
    if not (folder / FILE_NAME).is_file():
        raise RequestError(
            f"trace: {str(folder)!r} has no {FILE_NAME}; name the output_dir of a run of this "
            f"release that has ended a step"
        )
    first, last = _range(arguments[1]) if len(arguments) == 2 else (0, None)
    notes = ReadNotes()
    steps = _newest(folder, notes, first, last)
    if not steps:
        raise RequestError(f"trace: {folder / FILE_NAME} has no step of {arguments[1:] or 'any'}")
    try:
        path = write_trace(folder, steps)
    except OSError as error:
        raise RequestError(
            f"the trace cannot be written to {str(folder)!r}: {error.strerror or error}; copy the "
            f"folder to a place that you can write"
        ) from error
    for note in notes.texts():
        say(note)
    say(f"Trace of steps {steps[0].step} to {steps[-1].step}: {path} (open it in ui.perfetto.dev)")
    return 0


def _range(text: str) -> tuple[int, int]:
    match = _STEPS.fullmatch(text)
    if match is None:
        raise RequestError(f"trace: {text!r} is no step and no range of steps, such as 3 or 3-8")
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    if last < first:
        raise RequestError(f"trace: the range {text!r} ends before it begins")
    return first, last


def _newest(folder: Path, notes: ReadNotes, first: int, last: int | None) -> list[StepTimes]:
    """The last steps of the range that a trace holds, in order."""
    steps: dict[int, StepTimes] = {}
    events = num_left_out = 0
    for times in read_step_times(folder, notes, first=first, last=last):
        events -= sum(map(num_events, forget_from(times.step, steps)))
        steps[times.step] = times
        events += num_events(times)
        while events > MAX_EVENTS and len(steps) > 1:
            events -= num_events(steps.pop(next(iter(steps))))
            num_left_out += 1
    if num_left_out:
        notes.add(
            f"the trace would be too large: its first {num_left_out} steps are left out; name "
            f"fewer steps to see them"
        )
    return list(steps.values())
