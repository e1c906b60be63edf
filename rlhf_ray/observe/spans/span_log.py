"""spans.jsonl: a line per step with the phases of the driver and the times of every worker."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from rlhf_ray.disk_space import full_disk_said
from rlhf_ray.observe.spans.call_spans import CallSpans, Span

FILE_NAME = "spans.jsonl"
# After so many bytes every second step is written, after as many again every fourth, and so on.
BYTES_OF_ALL_STEPS = 64 * 1024 * 1024


class NoSpanLog:
    """Null object of a loop without a record of times."""

    def phase(self, name: str) -> None: ...

    def write(self, step: int) -> None: ...

    def close(self) -> None: ...


NO_SPAN_LOG = NoSpanLog()


class SpanLog:
    """Writes the times of one step after the other. Create it when the first step begins.

    Args:
        spans: collects the times of the workers.
        last_step: step after which the run continues; 0 or less starts an empty file. Of a step
            that is written again the later line counts.
    """

    def __init__(self, folder: Path, spans: CallSpans, *, last_step: int) -> None:
        self._path = folder / FILE_NAME
        self._spans = spans
        self._file = self._path.open("w" if last_step <= 0 else "a", encoding="utf-8")
        if _ends_within_a_line(self._path):
            self._file.write("\n")
        spans.take()  # Those of the start.
        self._begin_step()

    def phase(self, name: str) -> None:
        """The driver enters a phase of the step."""
        self._phases.append((name, time.monotonic()))

    def write(self, step: int) -> None:
        """End a step, and begin the next.

        Raises:
            DiskFull: the disk is full.
        """
        line = _line(step, self._wall, self._begun, self._phases, self._spans.take())
        if step % 2 ** (self._file.tell() // BYTES_OF_ALL_STEPS) == 0:
            with full_disk_said(self._path):
                self._file.write(line + "\n")
                self._file.flush()
        self._begin_step()

    def close(self) -> None:
        self._file.close()

    def _begin_step(self) -> None:
        self._wall, self._begun = time.time(), time.monotonic()
        self._phases: list[tuple[str, float]] = []


def _line(
    step: int,
    wall: float,
    begun: float,
    phases: list[tuple[str, float]],
    spans: dict[str, dict[str, list[Span]]],
) -> str:
    """JSON of a step. Times are milliseconds since the step began; a span may begin before it."""
    now = time.monotonic()

    def ms(moment: float) -> int:
        return round(1000 * (moment - begun))

    ends = [*(begin for _, begin in phases[1:]), now]
    row: dict[str, Any] = {
        "step": step,
        "began_at": round(wall, 3),
        "ms": ms(now),
        "phases": [[name, ms(a), ms(b)] for (name, a), b in zip(phases, ends, strict=True)]
        if phases
        else [],
        "workers": {
            worker: {
                phase: [[ms(span.begin), ms(span.end), span.calls] for span in found]
                for phase, found in by_phase.items()
            }
            for worker, by_phase in spans.items()
        },
    }
    return json.dumps(row, separators=(",", ":"))


def _ends_within_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
