"""The loop of the stages that learn from examples: one step, and sometimes an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_ray.calls import CallWaiter
from rlhf_ray.driver.best_models import BestModels, LastModel
from rlhf_ray.driver.fit.checkpoints import FitCheckpoints, FitState
from rlhf_ray.driver.fit.held_out import LOSS, HeldOut, NoHeldOut
from rlhf_ray.driver.fit.steps import FitSteps
from rlhf_ray.driver.roles import OfflineRole
from rlhf_ray.driver.run_log import FitLog, StepClock


@dataclass(frozen=True, kw_only=True, slots=True)
class FitSettings:
    """Settings of early stopping, and the deadline of a step.

    Attributes:
        patience: evaluations in a row without an improvement that end the run; 0 never stops
            early.
        min_improvement: smallest drop of the held-out loss that counts, in nats.
        update_timeout_s: deadline of one step.
    """

    patience: int
    min_improvement: float
    update_timeout_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class FitLoop:
    """The parts of the loop; each hides its workers."""

    steps: FitSteps[Any]
    role: OfflineRole
    held_out: HeldOut | NoHeldOut
    models: BestModels | LastModel
    waiter: CallWaiter
    log: FitLog
    checkpoints: FitCheckpoints
    settings: FitSettings


def fit(loop: FitLoop, state: FitState) -> None:
    """Run from `state.step` to the last step, or until the held-out loss no longer falls.

    Raises:
        RunFailed: a worker died, failed or was late.
    """
    num_steps, settings = loop.steps.num_steps, loop.settings
    if state.step == 0 and loop.held_out.is_due(0, num_steps=num_steps):
        clock = StepClock(loop.log)
        with clock("evaluate"):
            before = loop.held_out.evaluate()
        loop.log.step_done(0, before | clock.seconds())
    while state.step < num_steps and not _is_over(state, settings):
        loop.waiter.begin_step(state.step)
        clock = StepClock(loop.log)
        with clock("update"):
            samples = loop.steps.next(state.step)
            calls = loop.role.update(samples.per_rank)
            timeout_s = settings.update_timeout_s
            # Every rank reports the same numbers.
            metrics = loop.waiter.results(calls, phase="update", timeout_s=timeout_s)[0]
        state.step += 1
        metrics = metrics | {"train/epochs": samples.epochs}
        if loop.held_out.is_due(state.step, num_steps=num_steps):
            with clock("evaluate"):
                metrics |= _evaluate(loop, state)
        loop.log.step_done(state.step, metrics | clock.seconds())
        # The checkpoint comes after the metrics: if the run is killed between the two, the
        # resumed run repeats the step, and no step is missing from the metrics.
        if loop.checkpoints.is_due(state.step):
            loop.log.phase("checkpoint")
        loop.checkpoints.save_if_due(state)


def _evaluate(loop: FitLoop, state: FitState) -> dict[str, float]:
    metrics = loop.held_out.evaluate()
    least = loop.settings.min_improvement
    state.improvement = state.improvement.after(state.step, metrics[LOSS], min_improvement=least)
    if state.improvement.best_step == state.step:
        loop.models.keep(state.step)
    return metrics


def _is_over(state: FitState, settings: FitSettings) -> bool:
    return 0 < settings.patience <= state.improvement.num_without
