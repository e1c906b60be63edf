"""The pipeline over fakes: order, retries, replacements, staleness, resume."""

from __future__ import annotations

import json

import pytest

from rlhf_ray.config.errors import RunFailed
from rlhf_ray.driver.rollouts.failure_budget import FailureBudget
from rlhf_ray.driver.rollouts.pipeline import Batch, PipelineSettings, RolloutPipeline
from rlhf_ray.testing.fake_waiter import InProcessWaiter
from rlhf_ray.testing.fakes import FakeGenerators, FakePrompts, FakeRewards


def make_pipeline(
    *,
    generators: FakeGenerators | None = None,
    rewards: FakeRewards | None = None,
    seed: int | None = None,
    max_staleness: int = 0,
    max_failure_rate: float = 0.1,
    prompts_per_step: int = 4,
    num_steps: int = 10,
) -> RolloutPipeline:
    return RolloutPipeline(
        prompts=FakePrompts(),
        generators=generators or FakeGenerators(),
        rewards=rewards or FakeRewards(),
        waiter=InProcessWaiter(seed),
        failure_budget=FailureBudget(max_failure_rate),
        settings=PipelineSettings(
            num_steps=num_steps,
            prompts_per_step=prompts_per_step,
            samples_per_prompt=2,
            max_staleness=max_staleness,
            generate_timeout_s=60.0,
        ),
    )


def ids(batch: Batch) -> list[str]:
    return [summary.prompt_id for summary in batch.summaries]


@pytest.mark.parametrize("seed", range(5))
def test_batches_are_in_prompt_order_for_any_completion_order(seed):
    pipeline = make_pipeline(
        generators=FakeGenerators(3), rewards=FakeRewards(2), seed=seed, max_staleness=1
    )
    assert ids(pipeline.next_batch(0)) == ["e0-r0", "e0-r1", "e0-r2", "e0-r3"]
    assert ids(pipeline.next_batch(1)) == ["e0-r4", "e0-r5", "e0-r6", "e0-r7"]


def test_groups_go_to_the_least_loaded_engine():
    generators = FakeGenerators(2)
    pipeline = make_pipeline(generators=generators)
    pipeline.begin(0)
    assert [engine for engine, _, _ in generators.requests] == [0, 1, 0, 1]
    assert generators.together == [(0, 4), (1, 4)] * 2


def test_batches_of_engines_at_work_start_at_once():
    generators = FakeGenerators()
    make_pipeline(generators=generators, max_staleness=1).begin(0)
    assert generators.together == [(0, 8)] * 4 + [(0, 0)] * 4


def test_synchronous_batches_start_together():
    generators = FakeGenerators()
    pipeline = make_pipeline(generators=generators)
    pipeline.next_batch(0)
    generators.version = 1
    pipeline.next_batch(1)
    assert generators.together == [(0, 8)] * 8, "how many samples the engine is to wait for"


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_no_more_than_staleness_plus_one_batches_are_in_flight(max_staleness):
    generators = FakeGenerators()
    pipeline = make_pipeline(generators=generators, max_staleness=max_staleness)
    pipeline.begin(0)
    assert len(generators.requests) == 4 * (max_staleness + 1)
    pipeline.next_batch(0)
    assert len(generators.requests) == 4 * (max_staleness + 1)


def test_nothing_is_generated_beyond_the_last_step():
    generators = FakeGenerators()
    pipeline = make_pipeline(generators=generators, max_staleness=3, num_steps=2)
    pipeline.next_batch(0)
    pipeline.next_batch(1)
    assert len(generators.requests) == 8


def test_failed_samples_alone_are_retried_once_on_another_engine():
    generators = FakeGenerators(2, fails=lambda engine, prompt, i: engine == 0 and i == 1)
    pipeline = make_pipeline(generators=generators)
    batch = pipeline.next_batch(0)
    assert ids(batch) == ["e0-r0", "e0-r1", "e0-r2", "e0-r3"]
    assert batch.num_dropped == 0
    retries = [request for request in generators.requests if len(request[2]) == 1]
    assert sorted(retries) == [(1, "e0-r0", (1,)), (1, "e0-r2", (1,))]


def test_a_group_that_fails_twice_is_replaced_by_the_next_prompt():
    generators = FakeGenerators(2, fails=lambda engine, prompt, i: prompt.stream_index == 1)
    batch = make_pipeline(generators=generators).next_batch(0)
    assert ids(batch) == ["e0-r0", "e0-r2", "e0-r3", "e0-r4"]
    assert batch.num_dropped == 1
    assert {failure.prompt_id for failure in batch.failures} == {"e0-r1"}
    asked = [request for request in generators.requests if request[1] == "e0-r1"]
    assert len(asked) == 2


def test_a_failed_reward_is_never_a_reward():
    rewards = FakeRewards(score=lambda prompt, i: None if prompt.stream_index == 0 and i else 1.0)
    batch = make_pipeline(rewards=rewards).next_batch(0)
    assert "e0-r0" not in ids(batch)
    assert all(summary.rewards == (1.0, 1.0) for summary in batch.summaries)


def test_too_many_failures_end_the_run_with_the_first():
    rewards = FakeRewards(score=lambda prompt, i: None)
    with pytest.raises(RunFailed, match=r"11 of the last 11 groups failed.*e0-r0.*sample 0"):
        make_pipeline(rewards=rewards).next_batch(0)


def test_a_token_older_than_the_bound_ends_the_run():
    pipeline = make_pipeline(max_staleness=1)
    pipeline.next_batch(0)
    pipeline.next_batch(1)  # version 0 at version 1: within the bound
    with pytest.raises(RunFailed, match="tokens of version 0, 2 older"):
        pipeline.next_batch(2)


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_resume_goes_on_with_the_same_prompts(max_staleness):
    def later_batches(pipeline: RolloutPipeline, generators: FakeGenerators) -> list[list[str]]:
        batches = []
        for step in (1, 2, 3):
            generators.version = step
            batches.append(ids(pipeline.next_batch(step)))
        return batches

    generators = FakeGenerators(fails=lambda engine, prompt, i: prompt.stream_index == 2)
    straight = make_pipeline(generators=generators, max_staleness=max_staleness)
    straight.next_batch(0)
    state = json.loads(json.dumps(straight.state_dict()))
    expected = later_batches(straight, generators)

    other = FakeGenerators(fails=lambda engine, prompt, i: prompt.stream_index == 2)
    resumed = make_pipeline(generators=other, max_staleness=max_staleness)
    resumed.load_state_dict(state)
    assert later_batches(resumed, other) == expected
