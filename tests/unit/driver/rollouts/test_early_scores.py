"""The reference scores pieces of a batch while other prompts of it are still sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rlhf_ray.calls import Call
from rlhf_ray.driver.rollouts.early_scores import NO_EARLY_SCORES, EarlyScores
from rlhf_ray.driver.rollouts.failure_budget import FailureBudget
from rlhf_ray.driver.rollouts.pipeline import PipelineSettings, RolloutPipeline
from rlhf_ray.records import Prompt
from rlhf_ray.testing.fake_roles import FakeReference
from rlhf_ray.testing.fake_waiter import InProcessWaiter
from rlhf_ray.testing.fakes import FakeGenerators, FakePrompts, FakeRewards, done
from tests.unit.driver.rollouts.simulated_time import Clock, SlowRewards, StaggeredEngines

SIZE = 7


class Noting(FakeReference):
    """Notes the prompts of every request, and what the engines had still to do then."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def score(self, groups: Sequence[Any], num_tokens: Sequence[int]) -> list[Call]:
        assert list(num_tokens) == [group.token_ids.shape[0] for group in groups]
        self.asked.append([group.prompt.prompt_id for group in groups])
        return [done("reference", 0, payload=[group.prompt.prompt_id for group in groups])]


def scored(
    reference: Noting,
    *,
    seed: int,
    prompts_at_once: int = 3,
    num_steps: int = 1,
    max_staleness: int = 0,
    fails: set[str] | None = None,
) -> list[list[str]]:
    """The prompts of the payloads of each step, once its batch is complete."""
    early = EarlyScores(reference, prompts_at_once=prompts_at_once)

    def reward(prompt: Prompt, index: int) -> float | None:
        return None if prompt.prompt_id in (fails or ()) else float(index)

    pipeline = RolloutPipeline(
        prompts=FakePrompts(),
        generators=FakeGenerators(2),
        rewards=FakeRewards(score=reward),
        waiter=InProcessWaiter(seed),
        failure_budget=FailureBudget(0.5),
        settings=PipelineSettings(
            num_steps=num_steps,
            prompts_per_step=SIZE,
            samples_per_prompt=2,
            max_staleness=max_staleness,
            generate_timeout_s=60.0,
        ),
        early=early,
    )
    payloads = []
    for step in range(num_steps):
        batch = pipeline.next_batch(step)
        calls = early.score(batch.groups, [0] * len(batch.groups))
        payloads.append([prompt_id for call in calls for prompt_id in call.payload])
    return payloads


@pytest.mark.parametrize("seed", range(5))
def test_pieces_are_the_same_in_any_order_of_completion(seed):
    reference = Noting()
    (payload,) = scored(reference, seed=seed)
    ids = [f"e0-r{number}" for number in range(SIZE)]
    assert sorted(reference.asked) == [ids[:3], ids[3:6], ids[6:]]
    assert sorted(payload) == ids


def test_scores_are_hidden_behind_the_slowest_samples():
    """Prompts that take 1 to 4 s to sample, 3 s a group to reward, 2 s a group to score."""
    whole_s, whole = simulated(prompts_at_once=0)
    early_s, early = simulated(prompts_at_once=1)
    assert early == whole, "the same batches"
    # Rewards end after 1 + 8 x 3 s; then all groups wait for the reference, or the last one does.
    assert whole_s == pytest.approx(25.0 + 8 * 2.0)
    assert early_s == pytest.approx(25.0 + 2.0)


class SlowReference(FakeReference):
    """One group after the other, two seconds each."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._free_at = 0.0

    def score(self, groups: Sequence[Any], num_tokens: Sequence[int]) -> list[Call]:
        call = self._clock.busy(
            done("reference", 0, payload=[]), 2.0 * len(groups), since=self._free_at
        )
        self._free_at = self._clock.ends[call]
        return [call]


def simulated(*, prompts_at_once: int) -> tuple[float, list[str]]:
    """Seconds until a batch of 8 is scored, and its prompts."""
    clock = Clock()
    reference = SlowReference(clock)
    early = EarlyScores(reference, prompts_at_once=prompts_at_once) if prompts_at_once else None
    pipeline = RolloutPipeline(
        prompts=FakePrompts(),
        generators=StaggeredEngines(clock),
        rewards=SlowRewards(clock),
        waiter=clock,
        failure_budget=FailureBudget(0.5),
        settings=PipelineSettings(
            num_steps=1,
            prompts_per_step=8,
            samples_per_prompt=2,
            max_staleness=0,
            generate_timeout_s=60.0,
        ),
        early=early or NO_EARLY_SCORES,
    )
    batch = pipeline.next_batch(0)
    calls = (early or reference).score(batch.groups, [1] * len(batch.groups))
    clock.results(calls, phase="reference", timeout_s=60.0)
    return clock.now, [summary.prompt_id for summary in batch.summaries]


@pytest.mark.parametrize("seed", range(3))
def test_batches_in_flight_keep_their_pieces_apart(seed):
    reference = Noting()
    first, second = scored(reference, seed=seed, num_steps=2, max_staleness=1)
    assert sorted(first) == [f"e0-r{number}" for number in range(SIZE)]
    assert sorted(second, key=lambda name: int(name[4:])) == [
        f"e0-r{number}" for number in range(SIZE, 2 * SIZE)
    ]


def test_a_prompt_takes_the_place_of_one_that_failed():
    reference = Noting()
    (payload,) = scored(reference, seed=1, fails={"e0-r4"})
    assert sorted(payload) == [f"e0-r{number}" for number in (0, 1, 2, 3, 5, 6, 7)]
    assert ["e0-r3", "e0-r5", "e0-r7"] in reference.asked


def test_pieces_of_a_later_batch_are_scored_while_the_driver_waits():
    reference = Noting()
    early = EarlyScores(reference, prompts_at_once=2)
    waiter = InProcessWaiter()
    pipeline = RolloutPipeline(
        prompts=FakePrompts(),
        generators=FakeGenerators(1),
        rewards=FakeRewards(),
        waiter=waiter,
        failure_budget=FailureBudget(0.1),
        settings=PipelineSettings(
            num_steps=3,
            prompts_per_step=2,
            samples_per_prompt=2,
            max_staleness=1,
            generate_timeout_s=60.0,
        ),
        early=early,
    )
    batch = pipeline.next_batch(0)
    early.score(batch.groups, [0, 0])
    pipeline.begin(1)
    with waiter.meanwhile(pipeline.score_sampled):
        for _ in range(2):  # Samples to rewards, then rewards to the reference.
            waiter.results([], phase="update", timeout_s=60.0)
    assert sorted(reference.asked) == [[f"e0-r{i}", f"e0-r{i + 1}"] for i in (0, 2, 4)]
