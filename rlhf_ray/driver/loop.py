"""The loop. It reads like the algorithm: one call and one timer per phase."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.calls import CallWaiter
from rlhf_ray.driver.evaluation.evaluator import Evaluator
from rlhf_ray.driver.fleet.parts import NO_RECOVERY, NoRecovery, RecoveryMetrics
from rlhf_ray.driver.healing.parts import NO_HEALING, NoHealing
from rlhf_ray.driver.healing.trained_roles import TrainedRoles
from rlhf_ray.driver.rollouts.pipeline import RolloutPipeline
from rlhf_ray.driver.run_checkpoints import LoopState, RunCheckpoints
from rlhf_ray.driver.run_log import RunLog, StepClock
from rlhf_ray.driver.updates.device_sharing import DeviceSharing
from rlhf_ray.driver.updates.reference_update import ReferenceUpdater
from rlhf_ray.driver.updates.step_metrics import batch_metrics, coefficient_metrics
from rlhf_ray.driver.updates.token_scores import TokenScorers
from rlhf_ray.driver.updates.trainer import Trainer
from rlhf_ray.driver.updates.updated_scores import NO_UPDATED_SCORES, NoUpdatedScores, UpdatedScores
from rlhf_ray.publish.publisher import Publisher


@dataclass(frozen=True, kw_only=True, slots=True)
class Loop:
    """The parts of the loop; each hides its workers."""

    pipeline: RolloutPipeline
    token_scorers: TokenScorers
    trainer: Trainer
    publisher: Publisher
    reference_updater: ReferenceUpdater
    devices: DeviceSharing
    evaluator: Evaluator
    waiter: CallWaiter
    log: RunLog
    checkpoints: RunCheckpoints
    updated_scores: UpdatedScores | NoUpdatedScores = NO_UPDATED_SCORES
    recovery: RecoveryMetrics | NoRecovery = NO_RECOVERY
    trained: TrainedRoles | NoHealing = NO_HEALING


def train(loop: Loop, state: LoopState, *, num_steps: int) -> None:
    """Run from `state.step` to `num_steps`.

    Raises:
        RunFailed: a worker died, failed or was late; weights did not arrive; too many failures.
    """
    # Asks learner and critic, and asks again where one was lost and is back.
    do = loop.trained.do
    while state.step < num_steps:
        step = state.step
        loop.waiter.begin_step(step)
        clock = StepClock(loop.log)

        with clock("generate"):
            batch = loop.pipeline.next_batch(step)
            # Controllers: KL and entropy coefficients, reward baseline and scales.
            state.controllers = state.controllers.observe(batch)
        # Groups of later batches go on to the rewards while the driver waits for this one.
        with loop.waiter.meanwhile(loop.pipeline.score_sampled):
            # Reference, critic and old log-probabilities; rewards were scored with the rollouts.
            with clock("reference"):
                loop.devices.begin_training()
                scores = do(loop.token_scorers.score, batch, step)
            with clock("update"):
                coefficients = state.controllers.coefficients
                updated = do(
                    loop.trainer.update, batch, scores, step=step, coefficients=coefficients
                )
                # A request of its own: an update that is done must not be done again with it.
                do(loop.updated_scores.measure, batch, step)
        with clock("publish"):
            # The reference first: after the publish, shared devices belong to the engines.
            published = do(loop.reference_updater.update_if_due, step + 1)
            published |= do(loop.publisher.publish, step + 1)

        metrics = batch_metrics(batch, version=step) | updated | published
        metrics |= coefficient_metrics(coefficients)
        num_samples = sum(len(summary.rewards) for summary in batch.summaries)
        state.controllers = state.controllers.advance(metrics, num_samples=num_samples)
        state.step += 1
        if loop.evaluator.is_due(state.step):
            with clock("evaluate"):
                metrics |= do(loop.evaluator.evaluate, state.step)
        if loop.checkpoints.is_due(state.step):
            with clock("checkpoint"):
                do(loop.checkpoints.save_if_due, state, loop.pipeline)
        loop.pipeline.begin(state.step)
        # Ranks copy their state while the engines sample.
        loop.trained.step_done(state.step)

        metrics |= clock.seconds()
        # Only the pipeline knows how its wait divides into sampling and scoring.
        metrics |= {"time/generate_s": batch.generate_s, "time/score_s": batch.score_s}
        metrics |= loop.recovery.metrics()
        loop.log.step_done(state.step, batch, metrics)
