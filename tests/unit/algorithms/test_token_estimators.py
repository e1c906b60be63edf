"""Returns, process rewards, bootstrap, whitening per task: against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms.advantages.gae import gae
from rlhf_ray.algorithms.advantages.process_rewards import process_advantages
from rlhf_ray.algorithms.advantages.returns import returns_to_go
from rlhf_ray.algorithms.advantages.whitening import whiten, whiten_by_task
from rlhf_ray.algorithms.rewards.token_rewards import discount_by_position
from tests.unit.algorithms import ground_truth
from tests.unit.algorithms.ragged_cases import F64, flat, flat_mask, poisoned, samples, sizes

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


class TestReturns:
    def test_hand_computed_across_a_hole(self):
        result = returns_to_go(
            torch.tensor([math.nan, 1.0, math.nan, 2.0, 4.0]),
            torch.tensor([5]),
            torch.tensor([False, True, False, True, True]),
            gamma=0.5,
        )
        assert result.tolist() == [0.0, 1 + 0.5 * (2 + 0.5 * 4), 0.0, 4.0, 4.0]

    @settings(max_examples=80, deadline=None)
    @given(drawn=samples(1), gamma=st.floats(0.1, 1))
    def test_equals_ground_truth(self, drawn, gamma):
        masks, rewards = drawn
        mask = flat_mask(masks)
        result = returns_to_go(poisoned(rewards, mask), sizes(masks), mask, gamma=gamma)
        expected = [
            ground_truth.returns_to_go(r, m, gamma) for r, m in zip(rewards, masks, strict=True)
        ]
        torch.testing.assert_close(result, flat(expected), **CLOSE)


class TestProcess:
    def test_hand_computed(self):
        # Steps of 1, 2, 3 in two samples: mean 2, deviation 1, so -1, 0 and 1.
        result = process_advantages(
            torch.tensor([0.0, 1.0, 2.0, 0.0, 0.0, 3.0]),
            torch.tensor([False, True, True, False, False, True]),
            torch.tensor([3, 3]),
            torch.tensor([False, True, True, False, True, True]),
            torch.tensor([2]),
            std_epsilon=0.0,
        )
        assert result.tolist() == [0.0, -1.0, 0.0, 0.0, 1.0, 1.0]

    @settings(max_examples=80, deadline=None)
    @given(drawn=samples(1), data=st.data())
    def test_equals_ground_truth(self, drawn, data):
        masks, rewards = drawn
        ends = [[data.draw(st.booleans()) for _ in row] for row in masks]
        cut = data.draw(st.integers(0, len(masks)))
        group_sizes = [cut, len(masks) - cut]
        mask = flat_mask(masks)
        result = process_advantages(
            poisoned(rewards, mask),
            flat_mask(ends),
            sizes(masks),
            mask,
            torch.tensor(group_sizes),
            std_epsilon=1e-3,
        )
        expected = [
            row
            for members in (slice(0, cut), slice(cut, None))
            for row in ground_truth.process_advantages(
                rewards[members], ends[members], masks[members], 1e-3
            )
        ]
        torch.testing.assert_close(result, flat(expected), **CLOSE)


class TestBootstrap:
    def test_value_after_a_truncated_answer(self):
        rewards, values = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.5, 0.25, 0.5])
        advantages, returns = gae(
            rewards,
            values,
            torch.tensor([2, 1]),
            torch.ones(3, dtype=torch.bool),
            gamma=0.5,
            gae_lambda=0.0,
            bootstrap=torch.tensor([4.0, 0.0]),
        )
        # delta = r + gamma * next value - value, with 4 after the first sample's end.
        assert advantages.tolist() == [0.5 * 0.25 - 0.5, 1 + 0.5 * 4 - 0.25, 0.5]
        assert returns.tolist() == [0.5 * 0.25, 3.0, 1.0]

    def test_a_sample_without_a_token_takes_none(self):
        mask = torch.tensor([False, False, True])
        advantages, _ = gae(
            torch.tensor([math.nan, math.nan, 1.0]),
            torch.zeros(3),
            torch.tensor([2, 1]),
            mask,
            gamma=1.0,
            gae_lambda=1.0,
            bootstrap=torch.tensor([100.0, 2.0]),
        )
        assert advantages.tolist() == [0.0, 0.0, 3.0]

    def test_zero_is_the_same_as_none(self):
        generator = torch.Generator().manual_seed(0)
        rewards, values = torch.randn(2, 12, generator=generator, dtype=F64)
        lengths = torch.tensor([5, 0, 7])
        mask = torch.rand(12, generator=generator) < 0.7
        arguments = (rewards, values, lengths, mask)
        without = gae(*arguments, gamma=0.9, gae_lambda=0.8)
        zero = gae(*arguments, gamma=0.9, gae_lambda=0.8, bootstrap=torch.zeros(3, dtype=F64))
        assert torch.equal(without[0], zero[0])
        assert torch.equal(without[1], zero[1])


class TestWhitenByTask:
    def test_every_task_by_itself(self):
        values = torch.tensor([1.0, 3.0, 100.0, math.nan, 300.0], dtype=F64)
        mask = torch.tensor([True, True, True, False, True])
        result = whiten_by_task(values, torch.tensor([1, 1, 2, 1]), mask, ["a", "a", "b", "b"])
        small = whiten(values, torch.tensor([True, True, False, False, False]))
        large = whiten(values, torch.tensor([False, False, True, False, True]))
        assert torch.equal(result, small + large)
        assert float(result[0]) == pytest.approx(-math.sqrt(0.5))
        assert float(result[4]) == pytest.approx(math.sqrt(0.5))

    def test_one_task_is_plain_whitening(self):
        values = torch.tensor([1.0, 2.0, 4.0])
        mask = torch.ones(3, dtype=torch.bool)
        result = whiten_by_task(values, torch.tensor([2, 1]), mask, ["a", "a"])
        assert torch.equal(result, whiten(values, mask))

    def test_a_task_for_every_sample(self):
        with pytest.raises(AssertionError, match="1 tasks for 2 samples"):
            whiten_by_task(
                torch.zeros(2), torch.tensor([1, 1]), torch.ones(2, dtype=torch.bool), ["a"]
            )


class TestPositionDiscount:
    def test_counts_sampled_tokens_only(self):
        result = discount_by_position(
            torch.tensor([math.nan, 1.0, math.nan, 1.0, 1.0]),
            torch.tensor([4, 1]),
            torch.tensor([False, True, False, True, True]),
            discount=0.5,
        )
        assert result.tolist() == [0.0, 1.0, 0.0, 0.5, 1.0]

    def test_one_changes_nothing(self):
        kl = torch.tensor([0.1, -0.2, 0.3], dtype=F64)
        mask = torch.tensor([True, True, True])
        assert torch.equal(discount_by_position(kl, torch.tensor([3]), mask, discount=1.0), kl)
