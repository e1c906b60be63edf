"""Policy loss, value loss and the reduction, with their gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from rlhf_ray.algorithms.policy_losses.clip import PolicyLoss, clipped_loss
from rlhf_ray.algorithms.policy_losses.ratio import probability_ratio
from rlhf_ray.algorithms.reduce import mean_share
from rlhf_ray.algorithms.value_loss import value_loss
from tests.unit.algorithms import ground_truth

F64 = torch.float64


def surrogate(
    logprobs: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    dual_clip: float | None = None,
) -> PolicyLoss:
    lengths = torch.tensor([mask.shape[0]])
    ratio = probability_ratio(logprobs, old, lengths, mask, level="token", log_ratio_clamp=20.0)
    return clipped_loss(ratio, advantages, mask, clip_low=0.2, clip_high=0.28, dual_clip=dual_clip)


class TestPolicyLoss:
    def test_hand_computed(self):
        ratios = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5, 1.1], dtype=F64)
        advantages = torch.tensor([2.0, 1.0, -1.0, 1.0, -1.0, 0.0], dtype=F64)
        mask = torch.ones(6, dtype=torch.bool)
        logprobs = ratios.log().requires_grad_()
        result = surrogate(logprobs, torch.zeros(6, dtype=F64), advantages, mask)
        expected = torch.tensor([-2.0, -1.28, 1.5, -0.5, 0.8, 0.0], dtype=F64)
        torch.testing.assert_close(result.per_token.detach(), expected)
        torch.testing.assert_close(result.ratio, ratios)
        assert result.clipped.tolist() == [False, True, False, False, True, False]
        assert not result.clamped.any()
        result.per_token.sum().backward()
        # -A * ratio where the clip does not decide, 0 where it does.
        gradient = torch.tensor([-2.0, 0.0, 1.5, -0.5, 0.0, 0.0], dtype=F64)
        torch.testing.assert_close(logprobs.grad, gradient)

    @pytest.mark.parametrize("advantage", [-2.0, -0.5, 0.0, 0.5, 2.0])
    def test_equals_ground_truth(self, advantage):
        logprobs, old = [], []
        for new_logprob, gap in itertools.product(
            (-30.0, -1.3, -0.01), (-25.0, -0.5, -0.1, 0.0, 0.1, 0.24, 0.26, 0.5, 25.0)
        ):
            logprobs.append(new_logprob)
            old.append(new_logprob - gap)
        result = surrogate(
            torch.tensor(logprobs, dtype=F64),
            torch.tensor(old, dtype=F64),
            torch.full((len(old),), advantage, dtype=F64),
            torch.ones(len(old), dtype=torch.bool),
        )
        expected = [
            ground_truth.policy_loss(
                new, before, advantage, clip_low=0.2, clip_high=0.28, clamp=20.0
            )
            for new, before in zip(logprobs, old, strict=True)
        ]
        torch.testing.assert_close(
            result.per_token, torch.tensor(expected, dtype=F64), rtol=1e-10, atol=1e-12
        )

    def test_clamped_log_ratio_is_reported_and_has_no_gradient(self):
        logprobs = torch.tensor([0.0, 0.0, -1.0], dtype=F64, requires_grad=True)
        old = torch.tensor([-21.0, 21.0, -1.0], dtype=F64)
        mask = torch.ones(3, dtype=torch.bool)
        result = surrogate(logprobs, old, torch.full((3,), -1.0, dtype=F64), mask)
        assert result.clamped.tolist() == [True, True, False]
        assert float(mean_share(result.clamped, mask, 3)) == pytest.approx(2 / 3)
        torch.testing.assert_close(result.ratio[0].item(), math.exp(20.0))
        result.per_token.sum().backward()
        assert logprobs.grad is not None
        assert logprobs.grad.tolist() == [0.0, 0.0, 1.0]

    def test_gradient_against_numerical_differentiation(self):
        generator = torch.Generator().manual_seed(1)
        old = -torch.rand(40, generator=generator, dtype=F64) * 3
        gaps = (torch.rand(40, generator=generator, dtype=F64) - 0.5) * 1.5
        # Numbers next to a kink have no derivative to compare with.
        kinks = torch.tensor([0.8, 1.28], dtype=F64).log()
        gaps = torch.where(((gaps[:, None] - kinks).abs() < 1e-3).any(1), gaps + 0.01, gaps)
        advantages = torch.randn(40, generator=generator, dtype=F64)
        mask = torch.rand(40, generator=generator) < 0.7
        logprobs = (old + gaps).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda x: surrogate(x, old, advantages, mask).per_token, (logprobs,)
        )

    def test_on_policy_gradient_is_the_policy_gradient(self):
        logprobs = torch.tensor([-0.5, -1.5, -2.5], dtype=F64, requires_grad=True)
        advantages = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
        mask = torch.ones(3, dtype=torch.bool)
        result = surrogate(logprobs, logprobs.detach(), advantages, mask)
        result.per_token.sum().backward()
        assert result.ratio.tolist() == [1.0, 1.0, 1.0]
        torch.testing.assert_close(logprobs.grad, -advantages, rtol=0, atol=0)

    @pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
    def test_masked_tokens_contribute_exactly_zero(self, poison):
        mask = torch.tensor([True, False, False, False])
        logprobs = torch.tensor([-1.0, poison, -1.0, -1.0], requires_grad=True)
        old = torch.tensor([-1.1, -1.0, poison, -1.0])
        advantages = torch.tensor([1.0, 1.0, 1.0, poison])
        result = surrogate(logprobs, old, advantages, mask)
        mean_share(result.per_token, mask, 1).backward()
        assert result.per_token.tolist()[1:] == [0.0, 0.0, 0.0]
        assert not result.clipped[1:].any()
        assert not result.clamped[1:].any()
        assert logprobs.grad is not None
        assert logprobs.grad[1:].tolist() == [0.0, 0.0, 0.0]
        assert logprobs.grad[0].item() == pytest.approx(-math.exp(0.1))

    def test_a_trained_nan_is_not_hidden(self):
        nan = torch.tensor([math.nan])
        result = surrogate(nan, torch.zeros(1), torch.ones(1), torch.tensor([True]))
        assert math.isnan(result.per_token.item())

    def test_refuses_old_logprobs_with_a_gradient(self):
        logprobs = torch.zeros(2, requires_grad=True)
        with pytest.raises(AssertionError, match="old_logprobs requires a gradient"):
            surrogate(logprobs, logprobs, torch.ones(2), torch.ones(2, dtype=torch.bool))


class TestValueLoss:
    def test_hand_computed(self):
        values = torch.tensor([1.0, 1.0, 1.0, 0.1], dtype=F64, requires_grad=True)
        returns = torch.tensor([3.0, 0.0, 1.0, 2.0], dtype=F64)
        old = torch.zeros(4, dtype=F64)
        mask = torch.ones(4, dtype=torch.bool)
        result = value_loss(values, old, returns, mask, clip=0.5)
        # The first moved towards its return, past the clip: (0.5 - 3)^2 / 2 and no gradient.
        # The second moved away: the unclipped error is the larger one. The third arrived at its
        # return but too fast: (0.5 - 1)^2 / 2. The fourth is inside.
        expected = torch.tensor([3.125, 0.5, 0.125, 1.9**2 / 2], dtype=F64)
        torch.testing.assert_close(result.per_token.detach(), expected)
        assert result.clipped.tolist() == [True, False, True, False]
        result.per_token.sum().backward()
        gradient = torch.tensor([0.0, 1.0, 0.0, -1.9], dtype=F64)
        torch.testing.assert_close(values.grad, gradient)

    @pytest.mark.parametrize("clip", [None, 0.3])
    def test_equals_ground_truth(self, clip):
        grid = list(itertools.product((-1.0, -0.2, 0.0, 0.25, 2.0), repeat=3))
        result = value_loss(
            *(torch.tensor(column, dtype=F64) for column in zip(*grid, strict=True)),
            torch.ones(len(grid), dtype=torch.bool),
            clip=clip,
        )
        expected = [ground_truth.value_loss(v, old, target, clip=clip) for v, old, target in grid]
        torch.testing.assert_close(result.per_token, torch.tensor(expected, dtype=F64))
        if clip is None:
            assert not result.clipped.any()

    @pytest.mark.parametrize("clip", [None, 0.3])
    def test_gradient_against_numerical_differentiation(self, clip):
        generator = torch.Generator().manual_seed(2)
        values, old, returns = torch.randn(3, 40, generator=generator, dtype=F64)
        mask = torch.rand(40, generator=generator) < 0.7
        assert torch.autograd.gradcheck(
            lambda x: value_loss(x, old, returns, mask, clip=clip).per_token,
            (values.requires_grad_(),),
        )

    @pytest.mark.parametrize("clip", [None, 0.3])
    def test_masked_tokens_contribute_exactly_zero(self, clip):
        mask = torch.tensor([True, False, False, False])
        values = torch.tensor([1.0, math.nan, 1.0, 1.0], requires_grad=True)
        old = torch.tensor([1.0, 0.0, math.inf, 0.0])
        returns = torch.tensor([0.0, 0.0, 0.0, math.nan])
        result = value_loss(values, old, returns, mask, clip=clip)
        mean_share(result.per_token, mask, 1).backward()
        assert result.per_token.tolist() == [0.5, 0.0, 0.0, 0.0]
        assert values.grad is not None
        assert values.grad.tolist() == [1.0, 0.0, 0.0, 0.0]


class TestMaskedMean:
    def test_hand_computed(self):
        values = torch.tensor([1.0, 10.0, 2.0])
        assert mean_share(values, torch.tensor([True, False, True]), 4).item() == 0.75

    def test_equals_ground_truth(self):
        values = torch.randn(50, generator=torch.Generator().manual_seed(3), dtype=F64)
        mask = torch.arange(50) % 3 == 0
        expected = ground_truth.mean_share(values.tolist(), mask.tolist(), 120)
        assert mean_share(values, mask, 120).item() == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("num_tokens", [0, 3])
    def test_no_token_gives_zero_with_a_gradient_path(self, num_tokens):
        weight = torch.tensor(2.0, requires_grad=True)
        values = weight * torch.ones(num_tokens)
        loss = mean_share(values, torch.zeros(num_tokens, dtype=torch.bool), 0)
        loss.backward()
        assert loss.item() == 0.0
        assert weight.grad is not None
        assert weight.grad.item() == 0.0

    def test_masked_nan_has_no_part_in_value_or_gradient(self):
        values = torch.tensor([1.0, math.nan], requires_grad=True)
        loss = mean_share(values, torch.tensor([True, False]), 2)
        loss.backward()
        assert loss.item() == 0.5
        assert values.grad is not None
        assert values.grad.tolist() == [0.5, 0.0]

    def test_any_split_sums_to_the_same_mean(self):
        generator = torch.Generator().manual_seed(4)
        values = torch.randn(64, generator=generator, dtype=F64)
        mask = torch.rand(64, generator=generator) < 0.5
        whole = mean_share(values, mask, int(mask.sum()))
        assert whole.item() == pytest.approx(values[mask].mean().item(), rel=1e-12)
        for sizes in ([64], [1, 63], [0, 10, 54], [16, 16, 16, 16]):
            pieces = zip(values.split(sizes), mask.split(sizes), strict=True)
            total = sum(mean_share(v, m, int(mask.sum())).item() for v, m in pieces)
            assert total == pytest.approx(whole.item(), rel=1e-12)
