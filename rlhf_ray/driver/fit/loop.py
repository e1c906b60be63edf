"""The loop of the stages that learn from examples: a step, and at times an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.driver.fit.held_out import LOSS, HeldOut, Improvement, NoHeldOut
from rlhf_ray.driver.fit.steps import FitSteps
from rlhf_ray.driver.run_log import StepClock


class TrainedRole(Protocol):
    """See `cluster.roles.fit.FittedRanks`."""

    def update(self, samples: Sequence[Any]) -> list[Call]: ...


class FitObserver(Protocol):
    """What is told of a run while it goes on. See `run_log.FitLog`."""

    def phase(self, name: str) -> None: ...
    def step_done(self, step: int, metrics: Mapping[str, float]) -> None: ...


class ModelKeeper(Protocol):
    """Keeps the model of the best evaluation. See `fit_models`."""

    def keep(self, step: int) -> None: ...


class FitSaver(Protocol):
    """Writes checkpoints when they are due. See `fit_state.FitCheckpoints`."""

    def save_if_due(self, state: FitState) -> None: ...


@dataclass(kw_only=True, slots=True)
class FitState:
    """What the loop itself remembers. `step` optimiser steps are done."""

    step: int
    improvement: Improvement


@dataclass(frozen=True, kw_only=True, slots=True)
class FitSettings:
    """When the loop stops before its last step.

    Attributes:
        patience: evaluations in a row without an improvement; 0 never stops early.
        min_improvement: of the held-out loss, in nats.
        update_timeout_s: of one step.
    """

    patience: int
    min_improvement: float
    update_timeout_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class FitLoop:
    """The parts of the loop; each hides its workers."""

    steps: FitSteps[Any]
    role: TrainedRole
    held_out: HeldOut | NoHeldOut
    models: ModelKeeper
    watch: CallWaiter
    observer: FitObserver
    saver: FitSaver
    settings: FitSettings


def fit(loop: FitLoop, state: FitState) -> None:
    """Run from `state.step` to the last step, or until the held-out loss no longer falls.

    Raises:
        RunFailed: a worker died, failed or was late.
    """
    num_steps, settings = loop.steps.num_steps, loop.settings
    if state.step == 0 and loop.held_out.is_due(0, num_steps=num_steps):
        clock = StepClock(loop.observer)
        with clock("evaluate"):
            before = loop.held_out.evaluate()
        loop.observer.step_done(0, before | clock.seconds())
    while state.step < num_steps and not _is_over(state, settings):
        loop.watch.begin_step(state.step)
        clock = StepClock(loop.observer)
        with clock("update"):
            samples = loop.steps.next(state.step)
            calls = loop.role.update(samples.per_rank)
            timeout_s = settings.update_timeout_s
            # Every rank reports the same.
            metrics = loop.watch.results(calls, phase="update", timeout_s=timeout_s)[0]
        state.step += 1
        metrics = metrics | {"train/epochs": samples.epochs}
        if loop.held_out.is_due(state.step, num_steps=num_steps):
            with clock("evaluate"):
                metrics |= _evaluate(loop, state)
        loop.observer.step_done(state.step, metrics | clock.seconds())
        # After the step is written down: a checkpoint never knows more than the metrics do.
        loop.observer.phase("checkpoint")
        loop.saver.save_if_due(state)


def _evaluate(loop: FitLoop, state: FitState) -> dict[str, float]:
    metrics = loop.held_out.evaluate()
    least = loop.settings.min_improvement
    state.improvement = state.improvement.after(state.step, metrics[LOSS], min_improvement=least)
    if state.improvement.best_step == state.step:
        loop.models.keep(state.step)
    return metrics


def _is_over(state: FitState, settings: FitSettings) -> bool:
    return 0 < settings.patience <= state.improvement.num_without
