"""The records of a run, step by step: metrics, rollout files, progress on the screen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.driver.roles import BuilderRole
from rlhf_ray.driver.rollouts.batch import Batch
from rlhf_ray.driver.shown_samples import NoShownSamples, ShownSamples
from rlhf_ray.driver.updates.updated_scores import NoUpdatedScores, UpdatedScores
from rlhf_ray.observe.flat_reward import FlatReward
from rlhf_ray.observe.metrics import MetricsWriter
from rlhf_ray.observe.progress import Progress
from rlhf_ray.observe.rollout_log import rollout_path
from rlhf_ray.observe.spans.span_log import NO_SPAN_LOG, NoSpanLog, SpanLog


class NoRollouts:
    """Null object for `observe.rollouts=false`."""

    def write(self, step: int, batch: Batch) -> None: ...

    def flush(self) -> None: ...


class RolloutFiles:
    """Has every batch written in the background; the builder's thread holds a few that wait.

    Args:
        updated_scores: of some answers after the update, where they were measured.
    """

    def __init__(
        self,
        builder: BuilderRole,
        waiter: CallWaiter,
        output_dir: Path,
        *,
        timeout_s: float,
        updated_scores: UpdatedScores | NoUpdatedScores | None = None,
    ) -> None:
        self._updated_scores = updated_scores or NoUpdatedScores()
        self._builder = builder
        self._waiter = waiter
        self._output_dir = output_dir
        self._timeout_s = timeout_s
        self._writing: list[Call] = []

    def write(self, step: int, batch: Batch) -> None:
        """Hand over the batch of a step.

        Raises:
            RunFailed: an earlier file could not be written.
        """
        self._wait()
        path = rollout_path(self._output_dir, step)
        updated = self._updated_scores.take()
        self._writing = [self._builder.write_rollouts(path, batch.fresh_groups, updated)]

    def flush(self) -> None:
        """Wait until all files are written.

        Raises:
            RunFailed: a file could not be written.
        """
        self._wait()
        self._writing = [self._builder.finish_rollouts()]
        self._wait()

    def _wait(self) -> None:
        writing, self._writing = self._writing, []
        self._waiter.results(writing, phase="build", timeout_s=self._timeout_s)


class RunLog:
    """Records the steps of an RL run. See `driver.loop`.

    Args:
        on_first_step: is called when the first step of this process has been recorded.
    """

    def __init__(
        self,
        *,
        metrics: MetricsWriter,
        progress: Progress,
        rollouts: RolloutFiles | NoRollouts,
        spans: SpanLog | NoSpanLog = NO_SPAN_LOG,
        samples: ShownSamples | NoShownSamples | None = None,
        on_first_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._metrics = metrics
        self._progress = progress
        self._rollouts = rollouts
        self._spans = spans
        self._samples = samples or NoShownSamples()
        self._on_first_step: Callable[[], None] | None = on_first_step
        self._flat_reward = FlatReward()

    def phase(self, name: str) -> None:
        self._progress.phase(name)
        self._spans.phase(name)

    def step_done(self, step: int, batch: Batch, metrics: dict[str, float]) -> None:
        """Record one step; `step` counts from 1."""
        self._metrics.write(step, metrics)
        self._spans.write(step)
        self._progress.step_done(step, metrics)
        if warning := self._flat_reward.warning(metrics):
            self._progress.message(warning)
        self._rollouts.write(step, batch)
        self._samples.show(step, batch)
        if self._on_first_step is not None:
            first, self._on_first_step = self._on_first_step, None
            first()


class FitLog:
    """Records the steps of a stage that learns from examples. See `driver.fit.loop`."""

    def __init__(
        self,
        *,
        metrics: MetricsWriter,
        progress: Progress,
        spans: SpanLog | NoSpanLog = NO_SPAN_LOG,
    ) -> None:
        self._metrics = metrics
        self._progress = progress
        self._spans = spans

    def phase(self, name: str) -> None:
        self._progress.phase(name)
        self._spans.phase(name)

    def step_done(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one step; step 0 is the evaluation before the first step."""
        self._metrics.write(step, metrics)
        self._spans.write(step)
        if step:
            self._progress.step_done(step, metrics)


class StepClock:
    """Times the phases of one step and announces them to a log. Create it when the step begins."""

    def __init__(self, log: RunLog | FitLog) -> None:
        self._log = log
        self._started = time.monotonic()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._log.phase(phase)
        started = time.monotonic()
        yield
        self._seconds[f"time/{phase}_s"] = time.monotonic() - started

    def seconds(self) -> dict[str, float]:
        """`time/PHASE_s` of every phase, and `time/step_s` so far."""
        return self._seconds | {"time/step_s": time.monotonic() - self._started}
