"""trace.json.gz: the times of steps in the trace-event format, which Perfetto opens.

Every worker is a process of the trace and every phase a track of it; the driver has its steps and
its phases. The format is described in "Trace Event Format" of the Chromium project.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.atomic_file import partial_path
from rlhf_ray.disk_space import full_disk_said
from rlhf_ray.report.timeline.step_times import StepTimes, order_of

TRACE_FILE = "trace.json.gz"
_DRIVER = "driver"
Event = dict[str, Any]


def write_trace(folder: Path, steps: Sequence[StepTimes]) -> Path:
    """Write the trace of some steps, in order, at least one; returns its path.

    Raises:
        OSError: the file cannot be written.
    """
    path = folder / TRACE_FILE
    partial = partial_path(path)
    with full_disk_said(path), gzip.open(partial, "wt", encoding="utf-8") as file:
        # Event by event: a trace of many steps is hundreds of megabytes.
        file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
        for number, event in enumerate(trace_events(steps)):
            file.write((",\n" if number else "") + json.dumps(event, separators=(",", ":")))
        file.write("\n]}\n")
    os.replace(partial, path)
    return path


def num_events(times: StepTimes) -> int:
    """Number of spans of a step."""
    spans = sum(len(found) for phases in times.workers.values() for found in phases.values())
    return 1 + len(times.phases) + spans


def trace_events(steps: Sequence[StepTimes]) -> Iterator[Event]:
    """Yield the events of some steps. Times are microseconds since the first of them began."""
    workers = sorted({worker for times in steps for worker in times.workers}, key=order_of)
    processes = {name: number for number, name in enumerate((_DRIVER, *workers), start=1)}
    tracks = _Tracks(processes)
    yield from tracks.names()
    origin = min(_first_ms(times) for times in steps)
    for times in steps:
        began = 1000 * times.began_at - origin
        step = {"step": times.step}
        yield from tracks.span(_DRIVER, "step", f"step {times.step}", began, began + times.ms, step)
        for phase, begin, end in times.phases:
            yield from tracks.span(_DRIVER, "phase", phase, began + begin, began + end, step)
        for worker in sorted(times.workers, key=order_of):
            for phase, spans in times.workers[worker].items():
                for begin, end, calls in spans:
                    known = {**step, "calls": calls}
                    yield from tracks.span(worker, phase, phase, began + begin, began + end, known)


def _first_ms(times: StepTimes) -> float:
    begins = [
        span[0] for phases in times.workers.values() for found in phases.values() for span in found
    ]
    return 1000 * times.began_at + min([0, *begins])


class _Tracks:
    """Tracks of every process, numbered as they are first used, and the end of each so far."""

    def __init__(self, processes: dict[str, int]) -> None:
        self._processes = processes
        self._numbers: dict[tuple[str, str], int] = {}
        self._ends: dict[tuple[str, str], float] = {}

    def names(self) -> Iterator[Event]:
        """Yield the names of the processes, in their order."""
        for name, number in self._processes.items():
            yield _named(number, "process_name", {"name": name})
            yield _named(number, "process_sort_index", {"sort_index": number})

    def span(
        self, process: str, track: str, name: str, begin: float, end: float, known: Event
    ) -> Iterator[Event]:
        """Yield a span, after the name of its track where it is the first.

        A worker that a step finds at work has been in the step before, too: spans of one track do
        not overlap, because Perfetto would put one into the other.
        """
        key = (process, track)
        number = self._processes[process]
        if key not in self._numbers:
            self._numbers[key] = 1 + sum(other == process for other, _ in self._numbers)
            yield _named(number, "thread_name", {"name": track}, tid=self._numbers[key])
        begin = max(begin, self._ends.get(key, begin))
        if end < begin:
            return
        self._ends[key] = end
        yield {
            "ph": "X",
            "pid": number,
            "tid": self._numbers[key],
            "name": name,
            "cat": track,
            "ts": round(1000 * begin),
            "dur": round(1000 * (end - begin)),
            "args": known,
        }


def _named(pid: int, what: str, arguments: Event, *, tid: int = 0) -> Event:
    return {"ph": "M", "pid": pid, "tid": tid, "name": what, "args": arguments}
