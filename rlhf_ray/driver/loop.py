"""The loop. It reads like the algorithm: one call and one timer per stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rlhf_ray.calls import CallWaiter
from rlhf_ray.driver.evaluation.evaluator import Evaluator
from rlhf_ray.driver.rollouts.batch import Batch
from rlhf_ray.driver.rollouts.pipeline import RolloutPipeline
from rlhf_ray.driver.run_log import StepClock
from rlhf_ray.driver.updates.controllers import Controllers, advance, observe
from rlhf_ray.driver.updates.device_sharing import DeviceSharing
from rlhf_ray.driver.updates.reference_update import ReferenceUpdater
from rlhf_ray.driver.updates.scorers import Scorers
from rlhf_ray.driver.updates.step_metrics import batch_metrics, coefficient_metrics
from rlhf_ray.driver.updates.trainer import Trainer
from rlhf_ray.publish.publisher import Publisher


class Observer(Protocol):
    """What is told of a run while it goes on. See `run_log.RunLog`."""

    def phase(self, name: str) -> None: ...
    def step_done(self, step: int, batch: Batch, metrics: dict[str, float]) -> None: ...


class StateSaver(Protocol):
    """Writes checkpoints when they are due. See `driver.run_checkpoints.RunCheckpoints`."""

    def save_if_due(self, state: LoopState, pipeline: RolloutPipeline) -> None: ...


@dataclass(kw_only=True, slots=True)
class LoopState:
    """What the loop itself remembers. `step` steps are done; weights are of version `step`."""

    step: int
    controllers: Controllers


@dataclass(frozen=True, kw_only=True, slots=True)
class Loop:
    """The parts of the loop; each hides its workers."""

    pipeline: RolloutPipeline
    scorers: Scorers
    trainer: Trainer
    publisher: Publisher
    reference_updater: ReferenceUpdater
    turns: DeviceSharing
    evaluator: Evaluator
    watch: CallWaiter
    observer: Observer
    saver: StateSaver


def train(loop: Loop, state: LoopState, *, num_steps: int) -> None:
    """Run from `state.step` to `num_steps`.

    Raises:
        RunFailed: a worker died, failed or was late; weights did not arrive; too many failures.
    """
    while state.step < num_steps:
        step = state.step
        loop.watch.begin_step(step)
        clock = StepClock(loop.observer)

        with clock("generate"):
            batch = loop.pipeline.next_batch(step)
            state.controllers = observe(state.controllers, batch)
        with clock("reference"):
            loop.turns.begin_training()
            scores = loop.scorers.score(batch, step)
        with clock("update"):
            coefficients = state.controllers.coefficients
            updated = loop.trainer.update(batch, scores, step=step, coefficients=coefficients)
        with clock("publish"):
            loop.turns.begin_publishing()
            published = loop.publisher.publish(step + 1)
            published |= loop.reference_updater.update_if_due(step + 1)
            loop.turns.begin_generating()

        metrics = batch_metrics(batch, version=step) | updated | published
        metrics |= coefficient_metrics(coefficients)
        num_samples = sum(len(summary.rewards) for summary in batch.summaries)
        state.controllers = advance(state.controllers, metrics, num_samples=num_samples)
        state.step += 1
        if loop.evaluator.is_due(state.step):
            with clock("evaluate"):
                metrics |= loop.evaluator.evaluate(state.step)
        with clock("checkpoint"):
            loop.saver.save_if_due(state, loop.pipeline)
        loop.pipeline.begin(state.step)

        metrics |= clock.seconds()
        # The pipeline knows which part of the wait was for scores.
        metrics |= {"time/generate_s": batch.generate_s, "time/score_s": batch.score_s}
        loop.observer.step_done(state.step, batch, metrics)
