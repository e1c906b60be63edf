"""How long the phases of a step take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class PhaseObserver(Protocol):
    """What is told which phase begins."""

    def phase(self, name: str) -> None: ...


class StepClock:
    """Times the phases of one step, and announces them. The step begins where it is made."""

    def __init__(self, observer: PhaseObserver) -> None:
        self._observer = observer
        self._started = time.monotonic()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._observer.phase(phase)
        started = time.monotonic()
        yield
        self._seconds[f"time/{phase}_s"] = time.monotonic() - started

    def seconds(self) -> dict[str, float]:
        """`time/PHASE_s` of every phase, and `time/step_s` so far."""
        return self._seconds | {"time/step_s": time.monotonic() - self._started}
