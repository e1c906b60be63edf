"""Reductions, controllers, KL variants and the Huber error."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms.advantages.moving_baseline import (
    start_moving_baseline,
    update_moving_baseline,
)
from rlhf_ray.algorithms.entropy_controller import (
    EntropyController,
    entropy_coefficient,
    fixed_entropy_controller,
    update_entropy_controller,
)
from rlhf_ray.algorithms.kl import full_kl, token_kl
from rlhf_ray.algorithms.kl_controller import scheduled_kl_controller, update_kl_controller
from rlhf_ray.algorithms.reduce import reduce_tokens
from rlhf_ray.algorithms.value_loss import value_loss
from tests.unit.algorithms import ground_truth
from tests.unit.algorithms.ragged_cases import F64, flat_mask, poisoned, samples, sizes

REDUCTIONS = ("token_mean", "sequence_mean", "sequence_sum", "constant_length")


def counts(masks: list[list[bool]]) -> dict[str, int]:
    return {
        "num_tokens": sum(sum(mask) for mask in masks),
        "num_sequences": sum(any(mask) for mask in masks),
    }


class TestReduce:
    def test_by_hand(self):
        values = torch.tensor([1.0, 2.0, 6.0, 9.0])
        mask = torch.tensor([True, True, True, False])
        lengths = torch.tensor([2, 1, 1])
        expected = {
            "token_mean": 3.0,
            "sequence_mean": (1.5 + 6) / 2,
            "sequence_sum": 9 / 2,
            "constant_length": 9 / (2 * 10),
        }
        for reduction, number in expected.items():
            result = reduce_tokens(
                values,
                lengths,
                mask,
                reduction=reduction,
                num_tokens=3,
                num_sequences=2,
                constant_length=10,
            )
            assert result.item() == pytest.approx(number), reduction

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @settings(max_examples=50, deadline=None)
    @given(drawn=samples(1), data=st.data())
    def test_any_split_sums_to_the_ground_truth(self, reduction, drawn, data):
        masks, values = drawn
        expected = ground_truth.reduce_tokens(values, masks, reduction=reduction, constant_length=7)
        cut = data.draw(st.integers(0, len(masks)))
        total = 0.0
        for part in (slice(0, cut), slice(cut, None)):
            mask = flat_mask(masks[part])
            share = reduce_tokens(
                poisoned(values[part], mask),
                sizes(masks[part]),
                mask,
                reduction=reduction,
                constant_length=7,
                **counts(masks),
            )
            total += share.item()
        assert total == pytest.approx(expected, rel=1e-9, abs=1e-12)

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_masked_nan_and_empty_batches_have_a_gradient_of_zero(self, reduction):
        for mask, gradient in (([True, False], True), ([False, False], False)):
            values = torch.tensor([1.0, math.nan], requires_grad=True)
            loss = reduce_tokens(
                values,
                torch.tensor([2]),
                torch.tensor(mask),
                reduction=reduction,
                num_tokens=sum(mask),
                num_sequences=int(any(mask)),
                constant_length=1,
            )
            loss.backward()
            assert loss.item() == float(gradient)
            assert values.grad.tolist() == [float(gradient), 0.0]


class TestKL:
    def test_absolute(self):
        kl = token_kl(
            torch.tensor([-1.0, -2.0, 0.0]),
            torch.tensor([-1.5, -1.0, math.nan]),
            torch.tensor([True, True, False]),
            estimator="abs",
        )
        assert kl.tolist() == [0.5, 1.0, 0.0]

    @pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "abs"])
    def test_unbiased_gradient_keeps_the_value_and_has_the_gradient_of_k2(self, estimator):
        reference = torch.tensor([-1.5, -1.0, math.nan], dtype=F64)
        mask = torch.tensor([True, True, False])
        values, leaf = {}, torch.tensor([-1.0, -2.0, math.nan], dtype=F64, requires_grad=True)
        for gradient in ("estimator", "unbiased"):
            values[gradient] = token_kl(
                leaf, reference, mask, estimator=estimator, gradient=gradient
            )
        values["unbiased"].sum().backward()
        torch.testing.assert_close(values["unbiased"], values["estimator"])
        # The derivative of d^2 / 2 is d.
        assert leaf.grad.tolist() == [0.5, -1.0, 0.0]

    def test_unbiased_gradient_averages_to_that_of_the_divergence(self):
        logits = torch.tensor([0.3, -0.2, 1.0], dtype=F64, requires_grad=True)
        reference = torch.tensor([0.0, 0.5, 0.1], dtype=F64).log_softmax(0)
        exact = full_kl(logits[None], reference[None], torch.tensor([True])).sum()
        (expected,) = torch.autograd.grad(exact, logits)
        mask = torch.ones(3, dtype=torch.bool)

        def averaged(estimator: str, gradient: str) -> torch.Tensor:
            logprobs = logits.log_softmax(0)
            kl = token_kl(logprobs, reference, mask, estimator=estimator, gradient=gradient)
            return torch.autograd.grad((logprobs.exp().detach() * kl).sum(), logits)[0]

        torch.testing.assert_close(averaged("k3", "unbiased"), expected)
        torch.testing.assert_close(averaged("k1", "unbiased"), expected)
        torch.testing.assert_close(averaged("k1", "estimator"), torch.zeros(3, dtype=F64))
        assert (averaged("k3", "estimator") - expected).abs().max() > 0.01

    @settings(max_examples=50, deadline=None)
    @given(
        rows=st.lists(
            st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3), min_size=2, max_size=8
        )
    )
    def test_full_equals_ground_truth(self, rows):
        logits, reference = torch.tensor(rows, dtype=F64), torch.tensor(rows[::-1], dtype=F64)
        mask = torch.arange(len(rows)) % 3 != 2
        result = full_kl(torch.where(mask[:, None], logits, math.nan), reference, mask)
        for value, p, q, keep in zip(result, rows, rows[::-1], mask, strict=True):
            expected = ground_truth.full_kl(p, q) if keep else 0.0
            assert value.item() == pytest.approx(expected, abs=1e-9)

    def test_full_with_a_token_that_cannot_be_chosen(self):
        logits = torch.tensor([[0.0, 0.0, -math.inf]])
        result = full_kl(logits, torch.zeros(1, 3), torch.tensor([True]))
        assert result.item() == pytest.approx(math.log(1.5))

    def test_full_gradient_and_masked_nan(self):
        generator = torch.Generator().manual_seed(5)
        logits, reference = torch.randn(2, 4, 6, generator=generator, dtype=F64)
        mask = torch.tensor([True, False, True, True])
        assert torch.autograd.gradcheck(
            lambda x: full_kl(x, reference, mask), (logits.requires_grad_(),)
        )
        dirty = torch.full((4, 6), math.nan, dtype=F64, requires_grad=True)
        full_kl(dirty, reference, torch.zeros(4, dtype=torch.bool)).sum().backward()
        assert not dirty.grad.any()


class TestControllers:
    def test_a_schedule_goes_straight_and_stays(self):
        state = scheduled_kl_controller(0.4, final=0.1, num_steps=3)
        seen = []
        for _ in range(5):
            seen.append(state.coefficient)
            state = update_kl_controller(state, observed_kl=9.0, num_samples=10)
        assert seen == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.1])

    def test_entropy_is_pushed_up_below_its_target_only(self):
        state = EntropyController(coefficient=0.1, target=1.0, step_size=0.05, observed=math.inf)
        assert entropy_coefficient(state) == 0.0
        state = update_entropy_controller(state, observed_entropy=0.5)
        assert entropy_coefficient(state) == pytest.approx(0.15)
        state = update_entropy_controller(state, observed_entropy=0.9)
        assert entropy_coefficient(state) == pytest.approx(0.2)
        state = update_entropy_controller(state, observed_entropy=1.5)
        assert state.coefficient == pytest.approx(0.15)
        assert entropy_coefficient(state) == 0.0
        for _ in range(10):
            state = update_entropy_controller(state, observed_entropy=1.5)
        assert state.coefficient == 0.0

    def test_a_fixed_bonus_never_moves(self):
        state = fixed_entropy_controller(0.3)
        assert update_entropy_controller(state, observed_entropy=0.0) == state
        assert entropy_coefficient(state) == 0.3

    def test_moving_baseline_by_hand(self):
        state = start_moving_baseline(0.75)
        seen = []
        for reward in (2.0, 4.0, 0.0):
            seen.append(state.value)
            state = update_moving_baseline(state, mean_reward=reward)
        assert seen == [0.0, 2.0, 2.5]
        assert state.value == 1.875
        assert state.num_updates == 3


class TestHuber:
    def test_by_hand_and_by_gradient(self):
        values = torch.tensor([0.5, 3.0, -3.0], dtype=F64, requires_grad=True)
        zeros, mask = torch.zeros(3, dtype=F64), torch.ones(3, dtype=torch.bool)
        result = value_loss(values, zeros, zeros, mask, clip=None, huber_delta=1.0)
        result.per_token.sum().backward()
        assert result.per_token.tolist() == [0.125, 2.5, 2.5]
        assert values.grad.tolist() == [0.5, 1.0, -1.0]

    @pytest.mark.parametrize("clip", [None, 0.3])
    def test_equals_ground_truth(self, clip):
        generator = torch.Generator().manual_seed(6)
        values, old, returns = 2 * torch.randn(3, 60, generator=generator, dtype=F64)
        mask = torch.rand(60, generator=generator) < 0.8
        result = value_loss(
            torch.where(mask, values, math.nan), old, returns, mask, clip=clip, huber_delta=0.7
        )
        for i in range(60):
            near = values[i] if clip is None else values[i].clamp(old[i] - clip, old[i] + clip)
            errors = [float(x - returns[i]) for x in (values[i], near)]
            expected = max(ground_truth.huber(error, 0.7) for error in errors) if mask[i] else 0.0
            assert result.per_token[i].item() == pytest.approx(expected, abs=1e-12)
