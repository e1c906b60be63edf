"""Group baselines, GAE and whitening against plain loops and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms.advantages.gae import gae
from rlhf_ray.algorithms.advantages.group_advantages import group_advantages
from rlhf_ray.algorithms.advantages.whitening import whiten
from tests.unit.algorithms import ground_truth

F64 = torch.float64


def flat(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor([x for row in rows for x in row], dtype=F64)


def sizes(rows: list[list]) -> torch.Tensor:
    return torch.tensor([len(row) for row in rows], dtype=torch.int64)


class TestGroupAdvantages:
    def test_hand_computed_without_std(self):
        result = group_advantages(
            torch.tensor([1.0, 0.0, 0.0, 3.0, 5.0]),
            torch.tensor([3, 2]),
            normalize_by_std=False,
            std_epsilon=1e-6,
        )
        torch.testing.assert_close(result, torch.tensor([2, -1, -1, -3, 3], dtype=F64) / 3)

    def test_hand_computed_with_unbiased_std(self):
        # Mean 1, deviations -1, 0, 1: unbiased variance 2/2 = 1; epsilon is outside the root.
        result = group_advantages(
            torch.tensor([0.0, 1.0, 2.0]),
            torch.tensor([3]),
            normalize_by_std=True,
            std_epsilon=1.0,
        )
        torch.testing.assert_close(result, torch.tensor([-0.5, 0.0, 0.5], dtype=F64))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("reward", [0.85, 0.1, -7.3, 1e9, 0.0])
    @pytest.mark.parametrize("size", [2, 3, 7])
    def test_equal_rewards_give_exactly_zero(self, dtype, reward, size):
        for epsilon in (0.0, 1e-9, 1e-6):
            result = group_advantages(
                torch.full((size,), reward, dtype=dtype),
                torch.tensor([size]),
                normalize_by_std=True,
                std_epsilon=epsilon,
            )
            assert result.tolist() == [0.0] * size

    def test_almost_equal_rewards_still_differ(self):
        result = group_advantages(
            torch.tensor([0.85, 0.85 + 1e-6], dtype=F64),
            torch.tensor([2]),
            normalize_by_std=True,
            std_epsilon=0.0,
            tolerance=1e-6,
        )
        torch.testing.assert_close(result, torch.tensor([-1, 1], dtype=F64) / math.sqrt(2))

    def test_groups_of_one_and_of_none(self):
        result = group_advantages(
            torch.tensor([4.0, 1.0, 3.0]),
            torch.tensor([1, 0, 2]),
            normalize_by_std=False,
            std_epsilon=1e-6,
        )
        assert result.tolist() == [0.0, -1.0, 1.0]

    def test_float32_rewards_use_float64_statistics(self):
        # In float32 the mean of these is 16777216 or 16777218, never 16777217.
        rewards = torch.tensor([16777216.0, 16777218.0], dtype=torch.float32)
        result = group_advantages(
            rewards, torch.tensor([2]), normalize_by_std=False, std_epsilon=1e-6
        )
        assert result.dtype == F64
        assert result.tolist() == [-1.0, 1.0]

    @settings(max_examples=60, deadline=None)
    @given(
        groups=st.lists(
            st.lists(st.floats(-100, 100, allow_subnormal=False), max_size=6), max_size=5
        ),
        normalize=st.booleans(),
        data=st.data(),
    )
    def test_equals_ground_truth_in_any_order_of_groups(self, groups, normalize, data):
        order = data.draw(st.permutations(range(len(groups))))
        groups = [groups[index] for index in order]
        expected = ground_truth.group_advantages(
            groups, normalize_by_std=normalize, std_epsilon=1e-6
        )
        result = group_advantages(
            flat(groups), sizes(groups), normalize_by_std=normalize, std_epsilon=1e-6
        )
        torch.testing.assert_close(result, flat(expected), rtol=1e-9, atol=1e-7)

    def test_refuses_sizes_that_do_not_sum(self):
        with pytest.raises(AssertionError, match="group_sizes sums to 4, not to the 3 entries"):
            group_advantages(
                torch.zeros(3), torch.tensor([2, 2]), normalize_by_std=False, std_epsilon=0.0
            )


@st.composite
def ragged_samples(draw):
    """Samples of 0 to 9 tokens with masks that may have holes or be empty."""
    masks = draw(st.lists(st.lists(st.booleans(), max_size=9), min_size=1, max_size=4))
    number = st.floats(-3, 3, allow_subnormal=False)
    rows = [st.lists(number, min_size=len(mask), max_size=len(mask)) for mask in masks]
    return masks, [draw(row) for row in rows], [draw(row) for row in rows]


class TestGae:
    def test_hand_computed(self):
        # One prompt token, three sampled ones, the outcome on the last.
        # gamma 0.5, lambda 0.5, V = 1, 2, 3, r = 0, 0, 4:
        # delta = 0 + 1 - 1, 0 + 1.5 - 2, 4 - 3 = 0, -0.5, 1
        # A_3 = 1, A_2 = -0.5 + 0.25 = -0.25, A_1 = 0 - 0.0625
        advantages, returns = gae(
            torch.tensor([9.0, 0.0, 0.0, 4.0]),
            torch.tensor([9.0, 1.0, 2.0, 3.0]),
            torch.tensor([4]),
            torch.tensor([False, True, True, True]),
            gamma=0.5,
            gae_lambda=0.5,
        )
        assert advantages.tolist() == [0.0, -0.0625, -0.25, 1.0]
        assert returns.tolist() == [0.0, 0.9375, 1.75, 4.0]
        assert advantages.dtype == returns.dtype == torch.float32

    def test_holes_do_not_discount(self):
        without, _ = gae(
            torch.tensor([0.0, 1.0]),
            torch.tensor([0.25, 0.5]),
            torch.tensor([2]),
            torch.tensor([True, True]),
            gamma=0.9,
            gae_lambda=0.8,
        )
        nan = math.nan
        with_holes, _ = gae(
            torch.tensor([nan, 0.0, nan, nan, 1.0, nan]),
            torch.tensor([nan, 0.25, nan, nan, 0.5, nan]),
            torch.tensor([6]),
            torch.tensor([False, True, False, False, True, False]),
            gamma=0.9,
            gae_lambda=0.8,
        )
        assert with_holes.tolist() == [0, without[0].item(), 0, 0, without[1].item(), 0]

    def test_lambda_one_is_return_to_go_minus_value(self):
        rewards = torch.tensor([1.0, 2.0, 4.0], dtype=F64)
        values = torch.tensor([0.3, -0.7, 5.0], dtype=F64)
        mask = torch.ones(3, dtype=torch.bool)
        advantages, returns = gae(
            rewards, values, torch.tensor([3]), mask, gamma=1.0, gae_lambda=1.0
        )
        torch.testing.assert_close(returns, torch.tensor([7.0, 6.0, 4.0], dtype=F64))
        torch.testing.assert_close(advantages, returns - values)

    def test_long_samples_equal_the_definition_of_the_paper(self):
        generator = torch.Generator().manual_seed(0)
        lengths = [57, 1, 23]
        rewards = [torch.randn(n, generator=generator, dtype=F64).tolist() for n in lengths]
        values = [torch.randn(n, generator=generator, dtype=F64).tolist() for n in lengths]
        expected = [
            ground_truth.gae_by_definition(r, v, 0.97, 0.9)
            for r, v in zip(rewards, values, strict=True)
        ]
        advantages, _ = gae(
            flat(rewards),
            flat(values),
            torch.tensor(lengths),
            torch.ones(sum(lengths), dtype=torch.bool),
            gamma=0.97,
            gae_lambda=0.9,
        )
        torch.testing.assert_close(advantages, flat(expected), rtol=1e-12, atol=1e-12)

    @settings(max_examples=120, deadline=None)
    @given(
        samples=ragged_samples(),
        gamma=st.floats(0.1, 1),
        gae_lambda=st.floats(0, 1, allow_subnormal=False),
    )
    def test_equals_ground_truth_with_holes(self, samples, gamma, gae_lambda):
        masks, rewards, values = samples
        expected = [
            ground_truth.gae_with_holes(r, v, m, gamma, gae_lambda)
            for r, v, m in zip(rewards, values, masks, strict=True)
        ]
        mask = torch.tensor([keep for row in masks for keep in row], dtype=torch.bool)
        poisoned = [
            torch.where(mask, flat(rows), torch.full_like(flat(rows), math.nan))
            for rows in (rewards, values)
        ]
        advantages, returns = gae(*poisoned, sizes(masks), mask, gamma=gamma, gae_lambda=gae_lambda)
        close = {"rtol": 1e-10, "atol": 1e-10}
        torch.testing.assert_close(advantages, flat([a for a, _ in expected]), **close)
        torch.testing.assert_close(returns, flat([r for _, r in expected]), **close)

    def test_refuses_values_with_a_gradient(self):
        values = torch.zeros(2, requires_grad=True)
        with pytest.raises(AssertionError, match="values requires a gradient"):
            gae(
                torch.zeros(2),
                values,
                torch.tensor([2]),
                torch.ones(2, dtype=torch.bool),
                gamma=1.0,
                gae_lambda=1.0,
            )


class TestWhiten:
    def test_hand_computed_and_masked_again(self):
        # 1, 3, 5: mean 3, unbiased variance 4.
        result = whiten(
            torch.tensor([1.0, math.nan, 3.0, 5.0, math.inf], dtype=F64),
            torch.tensor([True, False, True, True, False]),
        )
        scale = math.sqrt(4 + 1e-8)
        expected = torch.tensor([-2 / scale, 0, 0, 2 / scale, 0], dtype=F64)
        torch.testing.assert_close(result, expected, rtol=1e-14, atol=0)

    def test_epsilon_is_inside_the_root(self):
        # Deviations of 1e-4 have variance 2e-8, of the size of the epsilon.
        result = whiten(torch.tensor([-1e-4, 1e-4], dtype=F64), torch.tensor([True, True]))
        expected = 1e-4 / math.sqrt(3e-8)
        torch.testing.assert_close(result, torch.tensor([-expected, expected], dtype=F64))

    @pytest.mark.parametrize("mask", [[False, False, False], [False, True, False]])
    def test_one_token_or_none_becomes_zero(self, mask):
        assert whiten(torch.tensor([3.0, 4.0, 5.0]), torch.tensor(mask)).tolist() == [0, 0, 0]

    @settings(max_examples=60, deadline=None)
    @given(
        rows=st.lists(
            st.tuples(st.floats(-5, 5, allow_subnormal=False), st.booleans()), max_size=20
        )
    )
    def test_equals_ground_truth(self, rows):
        values, mask = [x for x, _ in rows], [keep for _, keep in rows]
        result = whiten(torch.tensor(values, dtype=F64), torch.tensor(mask, dtype=torch.bool))
        expected = torch.tensor(ground_truth.whiten(values, mask), dtype=F64)
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)
