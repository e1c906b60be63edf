"""Rewards of later batches, computed while the driver waits for the training of this one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rlhf_ray.config.groups.rollout_selection import RolloutSelectionConfig
from rlhf_ray.driver.rollouts.failure_budget import FailureBudget
from rlhf_ray.driver.rollouts.pipeline import PipelineSettings, RolloutPipeline
from rlhf_ray.testing.fakes import FakePrompts, done
from tests.unit.driver.rollouts.simulated_time import SCORE_S, Clock, SlowRewards, StaggeredEngines

CLOCK_OF_PIPELINE = "rlhf_ray.driver.rollouts.pipeline.time"

UPDATE_S = 20.0
NUM_STEPS = 8


def pipeline_on(
    clock: Clock,
    *,
    max_staleness: int = 1,
    num_steps: int = NUM_STEPS,
    oversample: float = 1.0,
    per_step: int = 4,
) -> tuple[RolloutPipeline, StaggeredEngines]:
    engines = StaggeredEngines(clock)
    pipeline = RolloutPipeline(
        prompts=FakePrompts(),
        generators=engines,
        rewards=SlowRewards(clock),
        waiter=clock,
        failure_budget=FailureBudget(0.1),
        settings=PipelineSettings(
            num_steps=num_steps,
            prompts_per_step=per_step,
            samples_per_prompt=2,
            max_staleness=max_staleness,
            generate_timeout_s=600.0,
            rollout_selection=RolloutSelectionConfig(oversample=oversample),
        ),
    )
    return pipeline, engines


def train(*, meanwhile: bool, max_staleness: int = 1) -> tuple[float, list[list[str]]]:
    """Seconds and prompts of some steps, each of which trains for `UPDATE_S`."""
    clock = Clock()
    pipeline, engines = pipeline_on(clock, max_staleness=max_staleness)
    batches: list[list[str]] = []

    def update() -> None:
        training = clock.busy(done("learner", 0), UPDATE_S)
        clock.results([training], phase="update", timeout_s=600.0)

    for step in range(NUM_STEPS):
        batch = pipeline.next_batch(step)
        batches.append([summary.prompt_id for summary in batch.summaries])
        if meanwhile:
            with clock.meanwhile(pipeline.score_sampled):
                update()
        else:
            update()
        engines.version = step + 1
        pipeline.begin(step + 1)
    return clock.now, batches


def test_slow_rewards_are_hidden_behind_the_training_of_another_batch():
    before_s, before = train(meanwhile=False)
    after_s, after = train(meanwhile=True)
    assert after == before, "the same batches"
    # All but the first batch are scored in the shadow of an update. Before, the scores of every
    # second batch began after the update during which it was sampled.
    # The first batch also waits for three groups of the second one, which were sampled earlier.
    first_s = 1.0 + (4 + 3) * SCORE_S
    assert after_s == pytest.approx(first_s + NUM_STEPS * UPDATE_S)
    assert before_s == pytest.approx(after_s + 3 * 4 * SCORE_S)


def test_a_synchronous_run_takes_the_same_time_and_the_same_batches():
    assert train(meanwhile=True, max_staleness=0) == train(meanwhile=False, max_staleness=0)


def test_what_was_scored_meanwhile_is_handed_out_without_a_wait():
    clock = Clock()
    pipeline, _ = pipeline_on(clock)
    pipeline.next_batch(0)
    pipeline.begin(1)
    with clock.meanwhile(pipeline.score_sampled):
        training = clock.busy(done("learner", 0), 100.0)
        clock.results([training], phase="update", timeout_s=600.0)
    now = clock.now
    batch = pipeline.next_batch(1)
    assert [summary.prompt_id for summary in batch.summaries] == [f"e0-r{i}" for i in range(4, 8)]
    assert clock.now == now


def test_a_checkpoint_keeps_the_prompts_that_were_scored_meanwhile():
    clock = Clock()
    pipeline, _ = pipeline_on(clock)
    pipeline.next_batch(0)
    pipeline.begin(1)
    before = pipeline.state_dict()
    with clock.meanwhile(pipeline.score_sampled):
        training = clock.busy(done("learner", 0), 100.0)
        clock.results([training], phase="update", timeout_s=600.0)
    assert pipeline.state_dict() == before


def test_over_sampled_groups_that_were_scored_meanwhile_go_back_to_the_prompts():
    clock = Clock()
    pipeline, engines = pipeline_on(clock, oversample=1.5, num_steps=3)
    seen = []
    for step in range(3):
        batch = pipeline.next_batch(step)
        seen += [summary.prompt_id for summary in batch.summaries]
        with clock.meanwhile(pipeline.score_sampled):
            training = clock.busy(done("learner", 0), 100.0)
            clock.results([training], phase="update", timeout_s=600.0)
        engines.version = step + 1
        pipeline.begin(step + 1)
    assert len(seen) == len(set(seen)) == 12


@pytest.mark.parametrize("per_step", [1, 4])
def test_seconds_of_sampling_and_of_scoring(monkeypatch, per_step):
    """Prompt n samples for 1 + n seconds; with one prompt all samples come back in one wait."""
    clock = Clock()
    monkeypatch.setattr(CLOCK_OF_PIPELINE, SimpleNamespace(monotonic=lambda: clock.now))
    pipeline, _ = pipeline_on(clock, max_staleness=0, per_step=per_step)
    batch = pipeline.next_batch(0)
    assert batch.generate_s == pytest.approx(1.0 * per_step)
    # The first score begins after a second; each takes three, one after the other.
    assert batch.score_s == pytest.approx(1.0 + per_step * SCORE_S - per_step)
