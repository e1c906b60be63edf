"""What a run leaves behind step by step: metrics, rollouts, a line on the screen."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.driver.rollouts.batch import Batch
from rlhf_ray.observe.metrics import MetricsWriter
from rlhf_ray.observe.progress import Progress
from rlhf_ray.observe.rollout_log import rollout_path


class RolloutWriter(Protocol):
    """See `cluster.roles.builder.Builders`."""

    def write_rollouts(self, path: Path, groups: Sequence[Any]) -> Call: ...


class NoRollouts:
    """Rollout files are switched off."""

    def write(self, step: int, batch: Batch) -> None: ...

    def flush(self) -> None: ...


class RolloutFiles:
    """Writes every batch in the background; a file is waited for when the next one is due."""

    def __init__(
        self, writer: RolloutWriter, watch: CallWaiter, output_dir: Path, *, timeout_s: float
    ) -> None:
        self._writer = writer
        self._watch = watch
        self._output_dir = output_dir
        self._timeout_s = timeout_s
        self._writing: list[Call] = []

    def write(self, step: int, batch: Batch) -> None:
        self.flush()
        path = rollout_path(self._output_dir, step)
        self._writing = [self._writer.write_rollouts(path, batch.fresh_groups)]

    def flush(self) -> None:
        """Wait for the last file.

        Raises:
            RunFailed: it could not be written.
        """
        writing, self._writing = self._writing, []
        self._watch.results(writing, phase="build", timeout_s=self._timeout_s)


class RunLog:
    """The `Observer` of the loop."""

    def __init__(
        self,
        *,
        metrics: MetricsWriter,
        progress: Progress,
        rollouts: RolloutFiles | NoRollouts,
    ) -> None:
        self._metrics = metrics
        self._progress = progress
        self._rollouts = rollouts

    def phase(self, name: str) -> None:
        self._progress.phase(name)

    def step_done(self, step: int, batch: Batch, metrics: dict[str, float]) -> None:
        """Write down one step; `step` counts from 1."""
        self._metrics.write(step, metrics)
        self._progress.step_done(step, metrics)
        self._rollouts.write(step, batch)


class FitLog:
    """The `FitObserver` of a stage that learns from examples."""

    def __init__(self, *, metrics: MetricsWriter, progress: Progress) -> None:
        self._metrics = metrics
        self._progress = progress

    def phase(self, name: str) -> None:
        self._progress.phase(name)

    def step_done(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write down one step; 0 is what was measured before the first."""
        self._metrics.write(step, metrics)
        if step:
            self._progress.step_done(step, metrics)


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
