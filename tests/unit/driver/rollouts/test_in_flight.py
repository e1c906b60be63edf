"""Thousands of requests in flight: the driver's work for a batch grows with their number alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.driver.rollouts.engine_metrics import engine_metrics
from rlhf_ray.driver.rollouts.failure_budget import FailureBudget
from rlhf_ray.driver.rollouts.in_flight import InFlight
from rlhf_ray.driver.rollouts.pipeline import PipelineSettings, RolloutPipeline
from rlhf_ray.records import GroupSummary, Prompt
from rlhf_ray.testing.fake_waiter import InProcessPending, InProcessWaiter
from rlhf_ray.testing.fakes import FakeGenerators, FakePrompts, FakeRewards, done, make_prompt

NUM_ENGINES = 512
NUM_PROMPTS = 4096


class Engines(FakeGenerators):
    """Answer without a group, which takes longer to make than what is measured."""

    def generate(
        self, engine: int, prompt: Prompt, sample_indices: tuple[int, ...], *, together: int = 0
    ) -> Call:
        return done("generator", engine, signal=(), payload=prompt)


class Rewards:
    """Give a summary only."""

    names = tuple(MemberName(role="reward", rank=rank) for rank in range(8))

    def score(self, worker: int, parts: Sequence[Any]) -> Call:
        (prompt,) = parts
        summary = GroupSummary(
            prompt_id=prompt.prompt_id,
            stream_index=prompt.stream_index,
            source="fake",
            sample_lengths=(4,),
            response_lengths=(2,),
            finish_reasons=("stop",),
            rewards=(1.0,),
            reward_parts={},
            oldest_version=0,
            newest_version=0,
            failures=(),
        )
        return done("reward", worker, signal=summary, payload=prompt)


class OneByOne(InProcessWaiter):
    """Every call wakes the driver up, in the order of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.num_waits = 0

    def pending(self) -> InProcessPending:
        return InProcessPending()

    def results(self, calls: Sequence[Call], *, phase: str, timeout_s: float) -> list[Any]:
        self.num_waits += 1
        return super().results(calls, phase=phase, timeout_s=timeout_s)


class AllDone(InProcessPending):
    """Hands out all calls at once."""

    num_waits = 0

    def take_done(self, *, phase: str, timeout_s: float) -> list[tuple[Call, Any]]:
        self.num_waits += 1
        taken: list[tuple[Call, Any]] = []
        while self._calls:
            taken += super().take_done(phase=phase, timeout_s=timeout_s)
        return taken


class AllAtOnce(OneByOne):
    """All calls are done at every wait."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = AllDone()

    def pending(self) -> InProcessPending:
        return self.calls


def make_pipeline(waiter: InProcessWaiter, num_prompts: int, max_staleness: int) -> RolloutPipeline:
    return RolloutPipeline(
        prompts=FakePrompts(),
        generators=Engines(NUM_ENGINES),
        rewards=Rewards(),
        waiter=waiter,
        failure_budget=FailureBudget(0.0),
        settings=PipelineSettings(
            num_steps=2,
            prompts_per_step=num_prompts,
            samples_per_prompt=1,
            max_staleness=max_staleness,
            generate_timeout_s=60.0,
        ),
    )


def test_a_batch_of_thousands_costs_the_driver_less_than_a_second():
    pipeline = make_pipeline(OneByOne(), NUM_PROMPTS // 2, max_staleness=1)
    pipeline.begin(0)  # Two batches in flight: 4,096 requests, each of which wakes up twice.
    before = time.thread_time()
    sizes = [len(pipeline.next_batch(step).groups) for step in (0, 1)]
    assert sizes == [NUM_PROMPTS // 2] * 2
    # 0.15 s on a quiet machine; 5 s with scans of all requests.
    assert time.thread_time() - before < 1.0


def test_finished_calls_are_taken_together():
    waiter = AllAtOnce()
    assert len(make_pipeline(waiter, 256, max_staleness=0).next_batch(0).groups) == 256
    assert waiter.calls.num_waits == 2, "one wait for all samples, one for all scores"
    assert waiter.num_waits == 1, "statistics; no wait for a single call"


@pytest.mark.parametrize("seed", range(3))
def test_counts_of_a_batch_follow_its_requests(seed):
    """Retries, scoring and cancelling leave no request behind in the counts."""
    in_flight = InFlight(
        generators=FakeGenerators(3, fails=lambda engine, prompt, i: prompt.stream_index % 3 == 0),
        rewards=FakeRewards(2),
        waiter=InProcessWaiter(seed),
        samples_per_prompt=2,
        greedy=(),
        timeout_s=60,
    )
    in_flight.start(0, [make_prompt(i) for i in range(6)])
    in_flight.start(1, [make_prompt(i) for i in range(6, 10)])
    assert (in_flight.num_of(0), in_flight.num_of(1), in_flight.num_of(2)) == (6, 4, 0)
    seen: list[int] = []
    while in_flight.num_of(0) > 2:
        seen += [scored.batch for scored in in_flight.wait("generate", 60)]
    left = in_flight.num_of(1)
    assert seen.count(0) == 4
    assert left == 4 - seen.count(1)
    assert len(in_flight.cancel(0)) == 2
    assert (in_flight.num_of(0), in_flight.is_generating(0)) == (0, False)
    assert in_flight.num_of(1) == left
    while in_flight.num_of(1):
        seen += [scored.batch for scored in in_flight.wait("generate", 60)]
    assert seen.count(1) == 4
    assert not in_flight.is_generating(1)
    assert in_flight.cancel(1) == []


def test_metrics_of_engines_are_joined():
    numbers = {"kv_cache_use_max": 0.5, "queue_max": 3.0, "preemptions": 1.0}
    engines = [
        numbers | {"prefix_queries": 100.0, "prefix_hits": 20.0},
        numbers | {"kv_cache_use_max": 0.9, "prefix_queries": 300.0, "prefix_hits": 180.0},
    ]
    assert engine_metrics(engines) == {
        "engine/kv_cache_use_max": 0.9,
        "engine/queue_max": 3.0,
        "engine/preemptions": 2.0,
        "engine/prefix_hit_rate": 0.5,
    }
    unused = [numbers | {"prefix_queries": 0.0, "prefix_hits": 0.0}]
    assert "engine/prefix_hit_rate" not in engine_metrics(unused)
    assert engine_metrics([]) == {}
