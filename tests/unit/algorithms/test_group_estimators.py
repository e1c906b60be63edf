"""Estimators with one advantage per sample, against plain loops and numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ray.algorithms.advantages.group_advantages import group_advantages
from rlhf_ray.algorithms.advantages.maxrl import maxrl_advantages
from rlhf_ray.algorithms.advantages.moving_baseline import baseline_advantages
from rlhf_ray.algorithms.advantages.opo import opo_advantages
from rlhf_ray.algorithms.advantages.remax import remax_advantages
from rlhf_ray.algorithms.advantages.rloo import rloo_advantages
from tests.unit.algorithms import ground_truth
from tests.unit.algorithms.ragged_cases import F64, flat, groups, sizes


def grpo(rewards: Tensor, group_sizes: Tensor) -> Tensor:
    return group_advantages(rewards, group_sizes, normalize_by_std=True, std_epsilon=1e-6)


def equal_lengths(rewards: Tensor, group_sizes: Tensor) -> Tensor:
    return opo_advantages(rewards, torch.full_like(rewards, 7.0), group_sizes)


FROM_GROUPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grpo": grpo,
    "rloo": rloo_advantages,
    "opo": equal_lengths,
    "maxrl": maxrl_advantages,
}


def close(actual: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=F64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("estimate", FROM_GROUPS.values(), ids=FROM_GROUPS)
class TestEveryGroupBaseline:
    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    @pytest.mark.parametrize("reward", [0.85, 0.1, 1e9, 0.0])
    @pytest.mark.parametrize("size", [1, 2, 3, 7])
    def test_equal_rewards_give_exactly_zero(self, estimate, dtype, reward, size):
        rewards = torch.full((size,), reward, dtype=dtype)
        assert estimate(rewards, torch.tensor([size])).tolist() == [0.0] * size

    @settings(max_examples=60, deadline=None)
    @given(rows=groups(low=0.0), data=st.data())
    def test_order_changes_nothing(self, estimate, rows, data):
        expected = estimate(flat(rows), sizes(rows)).split(sizes(rows).tolist())
        order = data.draw(st.permutations(range(len(rows))))
        moved = [rows[i] for i in order]
        actual = estimate(flat(moved), sizes(moved)).split(sizes(moved).tolist())
        for place, i in enumerate(order):
            assert torch.equal(actual[place], expected[i])
        backwards = [row[::-1] for row in rows]
        flipped = estimate(flat(backwards), sizes(backwards)).split(sizes(rows).tolist())
        for part, original in zip(flipped, expected, strict=True):
            torch.testing.assert_close(part.flip(0), original, rtol=1e-9, atol=1e-9)

    def test_groups_of_no_sample_are_allowed(self, estimate):
        rewards = torch.tensor([1.0, 0.0, 3.0, 1.0])
        with_empty = estimate(rewards, torch.tensor([0, 2, 0, 2]))
        assert torch.equal(with_empty, estimate(rewards, torch.tensor([2, 2])))

    def test_sizes_that_do_not_fit_are_shown(self, estimate):
        with pytest.raises(AssertionError, match="group_sizes sums to 4, not to the 3 entries"):
            estimate(torch.zeros(3), torch.tensor([2, 2]))


class TestDeviations:
    def test_hand_computed(self):
        # Mean 1, squares 1 + 0 + 1: unbiased 1, biased sqrt(2/3).
        rewards, size = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([3])
        settings = {"normalize_by_std": True, "std_epsilon": 0.0}
        unbiased = group_advantages(rewards, size, **settings)
        biased = group_advantages(rewards, size, std_estimator="biased", **settings)
        close(unbiased, [-1, 0, 1])
        close(biased, [-math.sqrt(1.5), 0, math.sqrt(1.5)])

    def test_leave_one_out_by_hand(self):
        # Others of 0: 1 and 3, deviation sqrt(2). Of 1: 0 and 3, sqrt(4.5). Of 3: sqrt(0.5).
        result = group_advantages(
            torch.tensor([0.0, 1.0, 3.0]),
            torch.tensor([3]),
            normalize_by_std=True,
            std_epsilon=0.0,
            std_estimator="leave_one_out",
        )
        mean = 4 / 3
        close(result, [-mean / 2**0.5, (1 - mean) / 4.5**0.5, (3 - mean) / 0.5**0.5])

    @settings(max_examples=60, deadline=None)
    @given(rows=groups())
    def test_leave_one_out_equals_ground_truth(self, rows):
        result = group_advantages(
            flat(rows),
            sizes(rows),
            normalize_by_std=True,
            std_epsilon=1e-3,
            std_estimator="leave_one_out",
        )
        expected = [
            ground_truth.leave_one_out_std_advantages(row, 1e-3)
            if len(set(row)) > 1
            else [0.0] * len(row)
            for row in rows
        ]
        close(result, [x for row in expected for x in row])

    def test_a_name_that_is_none_is_shown(self):
        with pytest.raises(AssertionError, match="'population' is not in"):
            group_advantages(
                torch.zeros(2),
                torch.tensor([2]),
                normalize_by_std=True,
                std_epsilon=0.0,
                std_estimator="population",
            )


class TestRloo:
    def test_hand_computed(self):
        result = rloo_advantages(torch.tensor([1.0, 0.0, 0.0, 3.0, 5.0]), torch.tensor([3, 2]))
        close(result, [1, -0.5, -0.5, -2, 2])

    @settings(max_examples=60, deadline=None)
    @given(rows=groups())
    def test_equals_ground_truth(self, rows):
        expected = [ground_truth.rloo(row) if len(row) > 1 else [0.0] for row in rows]
        close(rloo_advantages(flat(rows), sizes(rows)), [x for row in expected for x in row])


class TestOpo:
    def test_hand_computed(self):
        # Baseline (3 * 1 + 1 * 5) / 4 = 2.
        result = opo_advantages(
            torch.tensor([1.0, 5.0]), torch.tensor([3.0, 1.0]), torch.tensor([2])
        )
        close(result, [-1, 3])

    @settings(max_examples=60, deadline=None)
    @given(rows=groups(), data=st.data())
    def test_equals_ground_truth(self, rows, data):
        lengths = [[data.draw(st.integers(0, 9)) for _ in row] for row in rows]
        result = opo_advantages(flat(rows), flat(lengths), sizes(rows))
        expected = [
            ground_truth.opo(row, n) if len(set(row)) > 1 else [0.0] * len(row)
            for row, n in zip(rows, lengths, strict=True)
        ]
        close(result, [x for row in expected for x in row])


class TestMaxRL:
    def test_hand_computed(self):
        # One success in four: mean 1/4, so that it counts (1 - 1/4) / (1/4) = 3.
        result = maxrl_advantages(torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.tensor([4]))
        close(result, [-1, 3, -1, -1])

    def test_no_success_no_signal(self):
        assert maxrl_advantages(torch.zeros(4), torch.tensor([4])).tolist() == [0.0] * 4

    @settings(max_examples=60, deadline=None)
    @given(rows=groups(low=0.0))
    def test_equals_ground_truth(self, rows):
        expected = [
            ground_truth.maxrl(row) if len(set(row)) > 1 else [0.0] * len(row) for row in rows
        ]
        close(maxrl_advantages(flat(rows), sizes(rows)), [x for row in expected for x in row])

    def test_negative_rewards_are_no_success_rate(self):
        with pytest.raises(ValueError, match=r"a reward is -0\.5: MaxRL divides by the mean"):
            maxrl_advantages(torch.tensor([1.0, -0.5]), torch.tensor([2]))


class TestRemax:
    def test_hand_computed(self):
        result = remax_advantages(
            torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.5, 3.0]), torch.tensor([2, 1])
        )
        close(result, [0.5, -0.5, -1])

    def test_one_greedy_reward_per_group(self):
        with pytest.raises(AssertionError, match=r"greedy_rewards must be floating point \[2\]"):
            remax_advantages(torch.zeros(3), torch.zeros(3), torch.tensor([2, 1]))


def test_moving_baseline_is_taken_off():
    close(baseline_advantages(torch.tensor([1.0, 0.0]), 0.25), [0.75, -0.25])
