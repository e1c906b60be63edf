"""Rewards of later batches, computed while the driver waits for the training of this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from rlhf_ray.calls import Call
from rlhf_ray.config.groups.rollout_selection import RolloutSelectionConfig
from rlhf_ray.driver.rollouts.failure_budget import FailureBudget
from rlhf_ray.driver.rollouts.pipeline import PipelineSettings, RolloutPipeline
from rlhf_ray.records import Prompt
from rlhf_ray.testing.fakes import FakeGenerators, FakePrompts, FakeRewards, done

UPDATE_S = 20.0
SCORE_S = 3.0
NUM_STEPS = 8


class Clock:
    """Simulated time: a `CallWaiter` whose waits move the clock to the end of what they wait for.

    Attributes:
        now: seconds since the start.
        ends: when calls are done; a call without an entry is done at once.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.ends: dict[Call, float] = {}
        self._work: Callable[[], None] | None = None

    def begin_step(self, step: int) -> None: ...

    def results(self, calls: Sequence[Call], *, phase: str, timeout_s: float) -> list[Any]:
        del phase, timeout_s
        last = max([self.now, *(self.ends.get(call, 0.0) for call in calls)])
        while self._work is not None and self.now < last:
            self.now = min([last, *(end for end in self.ends.values() if end > self.now)])
            self._work()
        self.now = last
        return [call.signal for call in calls]

    @contextmanager
    def meanwhile(self, work: Callable[[], None]) -> Iterator[None]:
        self._work = work
        try:
            yield
        finally:
            self._work = None

    def pending(self) -> Clocked:
        return Clocked(self)

    def stream(self, call: Call, *, phase: str, timeout_s: float) -> Iterator[Any]:
        yield from call.signal

    def busy(self, call: Call, seconds: float, *, since: float | None = None) -> Call:
        """Let a call take some time from now on, or from a later time."""
        self.ends[call] = max(self.now, since or 0.0) + seconds
        return call


class Clocked:
    """The `PendingCalls` of a clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._calls: list[Call] = []

    def add(self, call: Call) -> None:
        self._calls.append(call)

    def discard(self, call: Call) -> None:
        if call in self._calls:
            self._calls.remove(call)

    def take_done(self, *, phase: str, timeout_s: float) -> list[tuple[Call, Any]]:
        first = min(self._clock.ends.get(call, 0.0) for call in self._calls)
        self._clock.now = max(self._clock.now, first)
        return self.take_ready(phase=phase)

    def take_ready(self, *, phase: str) -> list[tuple[Call, Any]]:
        del phase
        ready = [c for c in self._calls if self._clock.ends.get(c, 0.0) <= self._clock.now]
        self._calls = [call for call in self._calls if call not in ready]
        return [(call, call.signal) for call in ready]


class StaggeredEngines(FakeGenerators):
    """Prompt n takes 1 + n % 4 seconds."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(2)
        self._clock = clock

    def generate(self, engine: int, prompt: Prompt, sample_indices: tuple[int, ...]) -> Call:
        call = super().generate(engine, prompt, sample_indices)
        return self._clock.busy(call, 1.0 + prompt.stream_index % 4)


class SlowRewards(FakeRewards):
    """One worker that takes one group after the other, three seconds each."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(1)
        self._clock = clock
        self._free_at = 0.0

    def score(self, worker: int, parts: Sequence[Any]) -> Call:
        call = self._clock.busy(super().score(worker, parts), SCORE_S, since=self._free_at)
        self._free_at = self._clock.ends[call]
        return call


def pipeline_on(
    clock: Clock, *, max_staleness: int = 1, num_steps: int = NUM_STEPS, oversample: float = 1.0
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
            prompts_per_step=4,
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
