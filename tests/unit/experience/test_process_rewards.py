"""Rewards of steps on their way into experience: by hand, by loops, and what else touches them."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from torch import Tensor

from rlhf_ray.config.groups.algorithm import AlgorithmConfig, OldLogprobsFrom
from rlhf_ray.experience.build import ExperienceBatch, build_experience
from rlhf_ray.experience.reward_shaping import NO_SHAPING, RewardShaping, shape_rewards
from rlhf_ray.records import Coefficients, GroupSteps, RolloutGroup
from rlhf_ray.records.files import load_records, save_records
from tests.unit.algorithms import ground_truth
from tests.unit.training.builders import ONE_RANK, F, T, by_tokens, make_group, only, random_groups

PROCESS = AlgorithmConfig(advantage="process", group_std_epsilon=0.0)
MEAN_ONLY = dataclasses.replace(PROCESS, normalize_by_std=False)


def with_steps(group: RolloutGroup, steps: list[float | None]) -> RolloutGroup:
    """The group with these rewards of steps by token; None where no step ends."""
    rewards = torch.tensor([step or 0.0 for step in steps], dtype=torch.float64)
    ends = torch.tensor([step is not None for step in steps])
    sums = torch.stack([part.sum() for part in rewards.split(group.lengths.tolist())])
    steps = GroupSteps(text_ends=ends.int(), rewards=rewards, ends=ends)
    return dataclasses.replace(group, rewards=sums, steps=steps)


def with_rewards(group: RolloutGroup, rewards: Tensor) -> RolloutGroup:
    assert group.steps is not None
    return dataclasses.replace(group, steps=dataclasses.replace(group.steps, rewards=rewards))


def one_group() -> RolloutGroup:
    """Steps of 1, 2 and of 3: mean 2, deviation 1. The second answer goes on behind its step."""
    group = make_group(0, [[F, T, T, T], [F, T, T]], [0.0, 0.0], token_ids=[1, 2, 2, 2, 1, 3, 3])
    return with_steps(group, [None, None, 1.0, 2.0, None, 3.0, None])


def build(
    groups: list[RolloutGroup],
    algorithm: AlgorithmConfig = PROCESS,
    shaping: RewardShaping = NO_SHAPING,
) -> ExperienceBatch:
    return build_experience(
        groups,
        reference=None,
        values=None,
        old=None,
        old_logprobs_from=OldLogprobsFrom.LEARNER_IN_UPDATE,
        algorithm=algorithm,
        coefficients=Coefficients(),
        learner=ONE_RANK,
        critic=None,
        seed=0,
        step=0,
        shaping=shaping,
    )


def advantages(batch: ExperienceBatch) -> dict[tuple[int, ...], list[float]]:
    return by_tokens(only(batch), "advantages")


def test_they_differ_within_one_answer():
    group = one_group()
    group = with_steps(group, [None, 1.0, None, 2.0, None, 3.0, None])
    batch = build([group])
    assert advantages(batch) == {(1, 2, 2, 2): [0.0, -1.0, 0.0, 0.0], (1, 3, 3): [0.0, 1.0, 0.0]}
    assert batch.metrics["steps/per_sample"] == 1.5
    assert batch.metrics["steps/reward_mean"] == 2.0
    assert batch.metrics["advantages/zero_group_fraction"] == 0.0
    assert not only(batch).returns.any()


def test_without_the_deviation_and_with_that_of_the_others():
    group = with_steps(one_group(), [None, 1.0, None, 2.0, None, 6.0, None])
    assert advantages(build([group], MEAN_ONLY))[1, 2, 2, 2] == [0.0, -3.0, -1.0, -1.0]
    biased = dataclasses.replace(PROCESS, group_std_estimator="biased")
    scale = (14 / 3) ** 0.5
    assert advantages(build([group], biased))[1, 3, 3] == pytest.approx([0.0, 3 / scale, 0.0])


@pytest.mark.parametrize("seed", range(4))
def test_equals_ground_truth(seed):
    numbers = random.Random(seed)
    groups = []
    for group in random_groups(seed, num_groups=3, samples_per_group=3):
        steps = [
            round(numbers.uniform(-1, 1), 2) if keep and numbers.random() < 0.4 else None
            for keep in group.loss_mask.tolist()
        ]
        groups.append(with_steps(group, steps))
    algorithm = dataclasses.replace(PROCESS, group_std_epsilon=1e-3)
    found = advantages(build(groups, algorithm))
    for group in groups:
        lengths = group.lengths.tolist()
        parts = (group.steps.rewards, group.steps.ends, group.loss_mask)
        rows = [[piece.tolist() for piece in part.split(lengths)] for part in parts]
        expected = ground_truth.process_advantages(rows[0], rows[1], rows[2], 1e-3)
        for ids, row in zip(group.token_ids.split(lengths), expected, strict=True):
            assert found[tuple(ids.tolist())] == pytest.approx(row, abs=1e-6)


def test_equal_totals_may_hide_a_signal_and_equal_steps_have_none():
    group = make_group(0, [[F, T, T], [F, T, T]], [0.0, 0.0], token_ids=[1, 2, 2, 1, 3, 3])
    turned = with_steps(group, [None, 1.0, 0.0, None, 0.0, 1.0])
    assert turned.rewards.tolist() == [1.0, 1.0]
    assert advantages(build([turned], MEAN_ONLY))[1, 2, 2] == [0.0, 0.0, -0.5]
    equal = with_steps(group, [None, 1.0, 1.0, None, None, 1.0])
    batch = build([equal])
    assert not only(batch).advantages.any()
    assert batch.metrics["advantages/zero_group_fraction"] == 1.0


def test_groups_without_steps_and_steps_that_are_not_finite_are_our_own_mistakes():
    group = one_group()
    bare = make_group(1, [[F, T], [F, T]], [1.0, 0.0])
    with pytest.raises(AssertionError, match="trains on steps, and a group has none"):
        build([group, bare])
    with pytest.raises(AssertionError, match="some groups have rewards of steps"):
        build([group, bare], AlgorithmConfig())
    with pytest.raises(AssertionError, match="the reward of a step is not finite"):
        build([with_rewards(group, group.steps.rewards * torch.nan)])


def test_other_algorithms_take_the_sum():
    batch = build([one_group()], AlgorithmConfig(normalize_by_std=False))
    assert not only(batch).advantages.any()
    assert "steps/per_sample" not in batch.metrics


def test_a_group_that_lost_all_samples_is_left_out():
    lost = make_group(1, [], [])
    assert set(advantages(build([lost, one_group()]))) == {(1, 2, 2, 2), (1, 3, 3)}


class TestSampleControl:
    def test_long_answers_are_punished_in_a_step_at_their_end(self):
        shaping = RewardShaping(
            max_response_tokens=3, overlong_buffer_tokens=1, overlong_penalty=1.0
        )
        (shaped,), _ = shape_rewards([one_group()], shaping)
        # Three tokens are one into the buffer; the second answer is short enough.
        assert shaped.steps.rewards.tolist() == [0.0, 0.0, 1.0, 1.0, 0.0, 3.0, 0.0]
        assert shaped.steps.ends.tolist() == [F, F, T, T, F, T, F]
        assert shaped.rewards.tolist() == [2.0, 3.0]
        longer = with_steps(one_group(), [None, 1.0, 2.0, None, None, 3.0, None])
        (shaped,), _ = shape_rewards([longer], shaping)
        assert shaped.steps.rewards.tolist() == [0.0, 1.0, 2.0, -1.0, 0.0, 3.0, 0.0]
        assert shaped.steps.ends.tolist() == [F, T, T, T, F, T, F]
        assert longer.steps.rewards.tolist() == [0.0, 1.0, 2.0, 0.0, 0.0, 3.0, 0.0]

    def test_filtered_answers_stay_in_the_baseline_without_a_gradient(self):
        group = dataclasses.replace(one_group(), finish_reasons=("stop", "length"))
        batch = build([group], MEAN_ONLY, RewardShaping(overlong_filter=True))
        # Against the mean of 1, 2 and 3, not of 1 and 2.
        assert advantages(batch) == {(1, 2, 2, 2): [0.0, -1.0, -1.0, 0.0], (1, 3, 3): [0.0] * 3}
        assert only(batch).num_loss_tokens == 3

    def test_weights_of_tasks_multiply_them(self):
        weighed = advantages(
            build([one_group()], MEAN_ONLY, RewardShaping(task_weights={"test": 3.0}))
        )
        assert weighed[1, 3, 3] == [0.0, 3.0, 0.0]


def test_steps_are_saved_with_their_group(tmp_path):
    ends = torch.arange(7, dtype=torch.int32)
    group = one_group()
    group = dataclasses.replace(group, steps=dataclasses.replace(group.steps, text_ends=ends))
    save_records([group, make_group(1, [[F, T]], [1.0])], tmp_path / "records.pt")
    loaded, bare = load_records(tmp_path / "records.pt")
    for name in ("text_ends", "rewards", "ends"):
        found, saved = getattr(loaded.steps, name), getattr(group.steps, name)
        assert torch.equal(found, saved), name
        assert found.dtype == saved.dtype, name
    assert loaded.summary().step_rewards == ((1.0, 2.0), (3.0,))
    assert bare.steps is None


def test_returns_of_steps_on_their_tokens():
    """Later steps at each token, discounted: 1 and 2 of the first answer, 3 of the second."""
    algorithm = AlgorithmConfig(advantage="returns", reward_level="step", gamma=0.5)
    found = advantages(build([one_group()], algorithm))
    assert found == {(1, 2, 2, 2): [0.0, 1.0, 2.0, 2.0], (1, 3, 3): [0.0, 3.0, 0.0]}
