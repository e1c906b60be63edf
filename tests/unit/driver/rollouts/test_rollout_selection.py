"""Dynamic sampling, over-sampling and replay over fakes, and resuming."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Collection, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.calls import Call
from rlhf_ray.config.groups.rollout_selection import RolloutSelectionConfig
from rlhf_ray.data.prompts.curriculum import CurriculumSettings, CurriculumStream
from rlhf_ray.data.prompts.load import PromptSet
from rlhf_ray.data.prompts.stream import PromptStream
from rlhf_ray.driver.roles import PromptSource
from rlhf_ray.driver.rollouts.batch import Batch
from rlhf_ray.driver.rollouts.failure_budget import FailureBudget
from rlhf_ray.driver.rollouts.pipeline import PipelineSettings, RolloutPipeline
from rlhf_ray.driver.updates.step_metrics import batch_metrics
from rlhf_ray.records import Prompt
from rlhf_ray.testing.fake_waiter import InProcessWaiter
from rlhf_ray.testing.fakes import FakeGenerators, FakePrompts, FakeReward, FakeRewards, make_prompt

SIZE = 4


class SlowWaiter(InProcessWaiter):
    """Calls of some prompts are done last."""

    def __init__(self, slow: Collection[int]) -> None:
        super().__init__()
        self.slow = set(slow)

    def choose(self, calls: Sequence[Call]) -> Call:
        quick = [c for c in calls if c.payload.prompt.stream_index not in self.slow]
        return (quick or list(calls))[0]


class PublishedPipeline(RolloutPipeline):
    """Publishes the weights of a step to the engines before the step begins."""

    def __init__(self, *, generators: FakeGenerators, **parts: Any) -> None:
        super().__init__(generators=generators, **parts)
        self._engines = generators

    def begin(self, step: int) -> None:
        self._engines.version = step
        super().begin(step)


def make_pipeline(
    selection: RolloutSelectionConfig,
    *,
    prompts: PromptSource | None = None,
    generators: FakeGenerators | None = None,
    score: Callable[[Prompt, int], FakeReward | None] = lambda prompt, index: float(index),
    waiter: InProcessWaiter | None = None,
    max_staleness: int = 0,
) -> RolloutPipeline:
    return PublishedPipeline(
        prompts=prompts or FakePrompts(),
        generators=generators or FakeGenerators(),
        rewards=FakeRewards(score=score),
        waiter=waiter or InProcessWaiter(),
        failure_budget=FailureBudget(1.0),
        settings=PipelineSettings(
            num_steps=50,
            prompts_per_step=SIZE,
            samples_per_prompt=2,
            max_staleness=max_staleness,
            generate_timeout_s=60.0,
            rollout_selection=selection,
        ),
    )


def uniform_at(*indices: int) -> Callable[[Prompt, int], float]:
    """Rewards that are equal within the groups of these prompts."""
    return lambda prompt, sample: 1.0 if prompt.stream_index in indices else float(sample)


def places(batch: Batch) -> list[int]:
    return [summary.stream_index for summary in batch.summaries]


class TestDynamicSampling:
    def test_groups_without_variance_are_replaced(self):
        pipeline = make_pipeline(RolloutSelectionConfig(dynamic=True), score=uniform_at(1, 3, 4))
        batch = pipeline.next_batch(0)
        assert places(batch) == [0, 2, 5, 6]
        assert batch.selection_metrics == {
            "rollout_selection/replaced_groups": 3.0,
            "rollout_selection/zero_variance_fraction": 3 / 7,
            "rollout_selection/zero_variance_kept": 0.0,
        }
        assert batch.num_dropped == 0, "a group without variance is no failure"
        assert places(pipeline.next_batch(1)) == [7, 8, 9, 10]

    def test_at_the_bound_groups_without_variance_fill_the_batch(self):
        selection = RolloutSelectionConfig(dynamic=True, max_replacements_per_step=2)
        batch = make_pipeline(selection, score=uniform_at(0, 1, 2, 4)).next_batch(0)
        # 4 and 5 came in for 0, 1 and 2; the first prompts without variance fill the batch.
        assert places(batch) == [0, 1, 3, 5]
        assert batch.selection_metrics["rollout_selection/replaced_groups"] == 2.0
        assert batch.selection_metrics["rollout_selection/zero_variance_kept"] == 2.0
        assert batch_metrics(batch, version=0)["rollout_selection/zero_variance_kept"] == 2.0

    def test_a_whole_batch_without_variance_ends(self):
        selection = RolloutSelectionConfig(dynamic=True, max_replacements_per_step=5)
        generators = FakeGenerators()
        pipeline = make_pipeline(selection, generators=generators, score=lambda *_: 0.5)
        assert places(pipeline.next_batch(0)) == [0, 1, 2, 3]
        assert len(generators.requests) == SIZE + 5

    def test_replacements_of_a_synchronous_batch_start_together(self):
        generators = FakeGenerators()
        pipeline = make_pipeline(
            RolloutSelectionConfig(dynamic=True), generators=generators, score=uniform_at(0, 2, 4)
        )
        pipeline.next_batch(0)
        # Four prompts, two in place of 0 and 2, one in place of 4; two samples each.
        assert generators.together == [(0, 8)] * 4 + [(0, 4)] * 2 + [(0, 2)]

    def test_steps_may_differ_where_their_sums_do_not(self):
        pairs = {0: ((1.0, 1.0), (2.0, 0.0)), 1: ((1.0, 1.0), (1.0, 1.0))}
        pipeline = make_pipeline(
            RolloutSelectionConfig(dynamic=True),
            score=lambda prompt, sample: pairs.get(prompt.stream_index, ((0.0, 0.0), (1.0, 0.0)))[
                sample
            ],
        )
        batch = pipeline.next_batch(0)
        assert batch.summaries[0].rewards == (2.0, 2.0)
        assert places(batch) == [0, 2, 3, 4]

    def test_without_it_equal_rewards_are_trained_on(self):
        batch = make_pipeline(RolloutSelectionConfig(), score=lambda *_: 0.5).next_batch(0)
        assert places(batch) == [0, 1, 2, 3]
        assert batch.selection_metrics == {}

    @settings(max_examples=60, deadline=None)
    @given(
        kinds=st.lists(st.sampled_from(["mixed", "uniform", "failed"]), min_size=30, max_size=30),
        allowed=st.integers(1, 8),
        seeds=st.tuples(st.integers(0, 99), st.integers(100, 199)),
    )
    def test_a_synchronous_batch_does_not_depend_on_completion_order(self, kinds, allowed, seeds):
        def score(prompt: Prompt, sample: int) -> float | None:
            rewards = {"mixed": float(sample), "uniform": 1.0, "failed": None}
            return rewards[kinds[prompt.stream_index] if prompt.stream_index < 30 else "mixed"]

        def batches(seed: int) -> list[tuple[list[int], dict[str, float]]]:
            pipeline = make_pipeline(
                RolloutSelectionConfig(dynamic=True, max_replacements_per_step=allowed),
                generators=FakeGenerators(2),
                score=score,
                waiter=InProcessWaiter(seed),
            )
            found = [pipeline.next_batch(step) for step in range(3)]
            return [(places(batch), dict(batch.selection_metrics)) for batch in found]

        first, second = (batches(seed) for seed in seeds)
        assert first == second
        for indices, metrics in first:
            assert len(indices) == SIZE
            assert indices == sorted(indices)
            uniform = sum(i < 30 and kinds[i] == "uniform" for i in indices)
            assert metrics["rollout_selection/zero_variance_kept"] == uniform
            assert metrics["rollout_selection/replaced_groups"] <= allowed
            if uniform:
                assert metrics["rollout_selection/replaced_groups"] == allowed

    @pytest.mark.parametrize("seed", range(5))
    def test_with_stale_batches_every_batch_is_full(self, seed):
        pipeline = make_pipeline(
            RolloutSelectionConfig(dynamic=True),
            score=uniform_at(*range(0, 40, 3)),
            waiter=InProcessWaiter(seed),
            max_staleness=2,
        )
        batches = [pipeline.next_batch(step) for step in range(4)]
        seen = [index for batch in batches for index in places(batch)]
        assert len(set(seen)) == 4 * SIZE
        assert not any(index % 3 == 0 for index in seen)


class TestOversampling:
    SELECTION = RolloutSelectionConfig(oversample=1.5, max_cancellations=2)

    def test_the_first_to_finish_are_kept_and_the_others_cancelled(self):
        generators = FakeGenerators(2)
        waiter = SlowWaiter({1, 2})
        pipeline = make_pipeline(self.SELECTION, generators=generators, waiter=waiter)
        batch = pipeline.next_batch(0)
        assert places(batch) == [0, 3, 4, 5]
        assert generators.aborted == [(0, ("e0-r2",)), (1, ("e0-r1",))]
        assert batch.selection_metrics == {
            "rollout_selection/cancelled_groups": 2.0,
            "rollout_selection/spare_groups": 0.0,
        }

    def test_cancelled_prompts_come_first_in_the_next_batch(self):
        generators = FakeGenerators()
        pipeline = make_pipeline(self.SELECTION, generators=generators, waiter=SlowWaiter({1, 2}))
        pipeline.next_batch(0)
        generators.requests.clear()
        pipeline.begin(1)
        asked = [prompt_id for _, prompt_id, _ in generators.requests]
        assert asked == [f"e0-r{index}" for index in (1, 2, 6, 7, 8, 9)]
        # No load of a cancelled prompt is left behind: the engine waits for these alone.
        assert generators.together[-6:] == [(0, 12)] * 6

    def test_a_prompt_that_was_cancelled_often_enough_is_waited_for(self):
        pipeline = make_pipeline(self.SELECTION, waiter=SlowWaiter({1}))
        batches = []
        for step in range(3):
            batches.append(places(pipeline.next_batch(step)))
        assert [1 in batch for batch in batches] == [False, False, True]
        assert all(len(batch) == SIZE for batch in batches)

    def test_every_prompt_is_trained_on_exactly_once(self):
        waiter = SlowWaiter(random.Random(0).sample(range(60), 20))
        prompts = FakePrompts()
        pipeline = make_pipeline(self.SELECTION, waiter=waiter, prompts=prompts)
        seen = [index for step in range(12) for index in places(pipeline.next_batch(step))]
        assert len(set(seen)) == len(seen) == 12 * SIZE
        assert set(range(40)) <= set(seen), "no prompt waits for long"
        assert sorted(prompts.recorded) == sorted(f"e0-r{index}" for index in seen)

    def test_a_failing_group_is_replaced_with_oversampling_too(self):
        def score(prompt: Prompt, sample: int) -> float | None:
            return None if prompt.stream_index in (0, 3) else float(sample)

        batch = make_pipeline(self.SELECTION, score=score).next_batch(0)
        assert len(places(batch)) == SIZE
        assert not {0, 3} & set(places(batch))

    def test_surplus_makes_up_for_groups_without_variance(self):
        selection = RolloutSelectionConfig(oversample=1.5, dynamic=True)
        batch = make_pipeline(selection, score=uniform_at(0, 1)).next_batch(0)
        assert places(batch) == [2, 3, 4, 5]
        assert batch.selection_metrics["rollout_selection/replaced_groups"] == 0.0
        assert batch.selection_metrics["rollout_selection/zero_variance_fraction"] == 2 / 6

    @pytest.mark.parametrize("size", [1, 7, 10, 100])
    def test_how_many_are_started(self, size):
        assert RolloutSelectionConfig(oversample=1.0).prompts_to_start(size) == size
        assert (
            RolloutSelectionConfig(oversample=1.1).prompts_to_start(size) == (size * 11 + 9) // 10
        )

    def test_returned_prompts_are_in_the_state(self):
        straight = make_pipeline(self.SELECTION, waiter=SlowWaiter({1, 2}))
        straight.next_batch(0)
        state = json.loads(json.dumps(straight.state_dict()))
        resumed = make_pipeline(self.SELECTION, waiter=SlowWaiter({1, 2}))
        resumed.load_state_dict(state)
        for step in (1, 2, 3):
            assert places(resumed.next_batch(step)) == places(straight.next_batch(step))


def test_an_earlier_checkpoint_without_returned_prompts_is_resumed():
    straight = make_pipeline(RolloutSelectionConfig())
    straight.next_batch(0)
    state = straight.state_dict()
    del state["returned"], state["times_returned"]
    resumed = make_pipeline(RolloutSelectionConfig())
    resumed.load_state_dict(state)
    assert places(resumed.next_batch(1)) == places(straight.next_batch(1)) == [4, 5, 6, 7]


class TestReplay:
    SELECTION = RolloutSelectionConfig(
        replay_groups_per_step=2, replay_capacity=5, replay_max_staleness=2
    )

    def run(self, pipeline: RolloutPipeline, steps: int) -> list[Batch]:
        return [pipeline.next_batch(step) for step in range(steps)]

    def test_the_most_varied_of_recent_groups_come_back_once(self):
        spread = {0: 1.0, 1: 0.0, 2: 3.0, 3: 2.0}
        pipeline = make_pipeline(
            self.SELECTION,
            score=lambda prompt, sample: sample * spread.get(prompt.stream_index, 0.0),
        )
        first, second, third = self.run(pipeline, 3)
        assert (places(first), first.num_replayed) == ([0, 1, 2, 3], 0)
        assert (places(second), second.num_replayed) == ([4, 5, 6, 7, 2, 3], 2)
        assert (places(third), third.num_replayed) == ([8, 9, 10, 11, 0], 1)
        assert second.selection_metrics == {
            "rollout_selection/replayed_groups": 2.0,
            "rollout_selection/replay_staleness_max": 1.0,
            "rollout_selection/replay_size": 1.0,
        }
        assert third.selection_metrics["rollout_selection/replay_staleness_max"] == 2.0
        assert second.groups[4] is first.groups[2], "the group itself, not a new one"

    def test_the_steps_are_what_varies_where_they_are_rewarded(self):
        # All sums are 0; the earlier the prompt, the further apart its steps.
        pipeline = make_pipeline(
            self.SELECTION,
            score=lambda prompt, _: (10.0 - prompt.stream_index, prompt.stream_index - 10.0),
        )
        first, second = self.run(pipeline, 2)
        assert {reward for summary in first.summaries for reward in summary.rewards} == {0.0}
        assert places(second) == [4, 5, 6, 7, 0, 1]

    def test_metrics_and_files_are_of_fresh_groups(self):
        pipeline = make_pipeline(self.SELECTION)
        _, batch = self.run(pipeline, 2)
        assert batch.num_replayed == 2
        metrics = batch_metrics(batch, version=1)
        assert metrics["tokens/generated"] == SIZE * 2 * 2
        assert metrics["rollout/staleness_max"] == 0.0
        assert batch.fresh_groups == batch.groups[:SIZE]

    def test_too_old_groups_are_forgotten(self):
        pipeline = make_pipeline(self.SELECTION, score=uniform_at(*range(4, 100)))
        batches = self.run(pipeline, 4)
        assert [batch.num_replayed for batch in batches] == [0, 2, 2, 0]
        short = RolloutSelectionConfig(replay_groups_per_step=1, replay_max_staleness=2)
        pipeline = make_pipeline(short, score=uniform_at(*range(4, 100)))
        batches = self.run(pipeline, 5)
        # Four groups of version 0, one at a time, as long as they are at most 2 versions old.
        assert [batch.num_replayed for batch in batches] == [0, 1, 1, 0, 0]

    def test_the_buffer_is_bounded(self):
        pipeline = make_pipeline(
            RolloutSelectionConfig(replay_groups_per_step=1, replay_capacity=3)
        )
        batches = self.run(pipeline, 6)
        sizes = [batch.selection_metrics["rollout_selection/replay_size"] for batch in batches]
        assert max(sizes) == 3.0


def real_stream(*, curriculum: bool) -> PromptStream | CurriculumStream:
    templates = tuple(make_prompt(row) for row in range(23))
    rows = PromptSet(
        prompts=tuple(_template(prompt, row) for row, prompt in enumerate(templates)),
        skipped=(),
        left_out_columns=(),
        fingerprint="f",
    )
    stream = PromptStream(rows, seed=3, shuffle=True)
    if not curriculum:
        return stream
    how = CurriculumSettings(target=0.5, min_weight=0.1, recency=0.5, success_reward=1.0)
    return CurriculumStream(stream, how, seed=3)


def _template(prompt: Prompt, row: int) -> Prompt:
    return dataclasses.replace(prompt, prompt_id=f"r{row}", stream_index=0)


@pytest.mark.parametrize("curriculum", [False, True])
@pytest.mark.parametrize("stop_after", [1, 3, 6])
def test_a_pipeline_restored_in_the_middle_goes_on_identically(curriculum, stop_after):
    """Dynamic sampling with and without a curriculum; rewards depend on row, seed and weights."""
    version = [0]

    def score(prompt: Prompt, sample: int) -> float:
        row = int(prompt.prompt_id.partition("-r")[2])
        luck = random.Random(f"{prompt.seed} {sample} {version[0]}").random()
        return float(luck < row / 22)

    def new() -> RolloutPipeline:
        return make_pipeline(
            RolloutSelectionConfig(
                dynamic=True, max_replacements_per_step=6, curriculum=curriculum
            ),
            prompts=real_stream(curriculum=curriculum),
            generators=FakeGenerators(2),
            score=score,
            waiter=InProcessWaiter(5),
        )

    def take(pipeline: RolloutPipeline, steps: range) -> list[Any]:
        found = []
        for step in steps:
            version[0] = step
            batch = pipeline.next_batch(step)
            rows = [(s.prompt_id, s.stream_index, s.rewards) for s in batch.summaries]
            found.append((rows, dict(batch.selection_metrics)))
        return found

    straight = take(new(), range(10))
    first = new()
    assert take(first, range(stop_after)) == straight[:stop_after]
    state = json.loads(json.dumps(first.state_dict()))
    resumed = new()
    resumed.load_state_dict(state)
    assert take(resumed, range(stop_after, 10)) == straight[stop_after:]
    replaced = [metrics["rollout_selection/replaced_groups"] for _, metrics in straight]
    assert max(replaced) > 0


def test_rewards_of_each_task_are_reported_where_there_are_several():
    batch = make_pipeline(
        RolloutSelectionConfig(), score=lambda p, i: float(p.stream_index)
    ).next_batch(0)
    assert not [name for name in batch_metrics(batch, version=0) if name.startswith("reward/mean/")]
    sources = ["sums", "words", "sums", "words"]
    summaries = tuple(
        dataclasses.replace(summary, source=source)
        for summary, source in zip(batch.summaries, sources, strict=True)
    )
    metrics = batch_metrics(dataclasses.replace(batch, summaries=summaries), version=0)
    assert metrics["reward/mean/sums"] == 1.0
    assert metrics["reward/mean/words"] == 2.0
    # Groups 0 and 2, 1 and 3, of two equal rewards each.
    assert metrics["reward/std/sums"] == pytest.approx((4 / 3) ** 0.5)
    assert metrics["reward/std/words"] == pytest.approx((4 / 3) ** 0.5)
    assert metrics["reward/mean"] == 1.5
