"""KL estimators and the adaptive coefficient."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_ray.algorithms.kl import token_kl
from rlhf_ray.algorithms.kl_controller import (
    adaptive_kl_controller,
    fixed_kl_controller,
    update_kl_controller,
)
from tests.unit.algorithms import ground_truth

F64 = torch.float64
ESTIMATORS = ("k1", "k2", "k3")


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [math.log(2), -math.log(2)]),
        ("k2", [math.log(2) ** 2 / 2, math.log(2) ** 2 / 2]),
        ("k3", [0.5 - 1 + math.log(2), 2 - 1 - math.log(2)]),
    ],
)
def test_hand_computed(estimator, expected):
    # The policy gives the tokens 1/2 and 1/4, the reference 1/4 and 1/2.
    logprobs = torch.tensor([0.5, 0.25], dtype=F64).log()
    mask = torch.tensor([True, True])
    result = token_kl(logprobs, logprobs.flip(0), mask, estimator=estimator)
    torch.testing.assert_close(result, torch.tensor(expected, dtype=F64))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equals_ground_truth_unclamped(estimator):
    # Gaps of 30 nats are beyond every clamp that others apply.
    gaps = [-30.0, -12.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 12.0, 30.0]
    reference = [-40.0 + index for index in range(len(gaps))]
    logprobs = [r + gap for r, gap in zip(reference, gaps, strict=True)]
    result = token_kl(
        torch.tensor(logprobs, dtype=F64),
        torch.tensor(reference, dtype=F64),
        torch.ones(len(gaps), dtype=torch.bool),
        estimator=estimator,
    )
    expected = [ground_truth.kl(p, r, estimator) for p, r in zip(logprobs, reference, strict=True)]
    torch.testing.assert_close(result, torch.tensor(expected, dtype=F64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gap", [-89.0, -1e4, 1e4])
@pytest.mark.parametrize("gradient", ["estimator", "unbiased"])
def test_k3_of_a_far_token_is_finite_in_float32(gap, gradient):
    logprobs = torch.tensor([gap, -1.0], requires_grad=True)
    mask = torch.ones(2, dtype=torch.bool)
    reference = torch.tensor([0.0, -1.5])
    result = token_kl(logprobs, reference, mask, estimator="k3", gradient=gradient)
    result.sum().backward()
    near = -40.0 if gap < 0 else 40.0
    assert result.isfinite().all()
    assert result[0].item() == pytest.approx(math.expm1(-near) + near, rel=1e-6)
    assert logprobs.grad is not None
    # The norm of the gradient is finite too.
    assert math.isfinite(logprobs.grad.square().sum().item())
    assert logprobs.grad[1].item() != 0.0


def test_k3_keeps_its_precision_near_zero():
    # d^2 / 2 to first order; exp(-d) - 1 + d in float32 would give 0 or 6e-8 here.
    gap = torch.tensor([1e-4], dtype=torch.float32)
    result = token_kl(gap, torch.zeros(1), torch.tensor([True]), estimator="k3")
    torch.testing.assert_close(result, torch.tensor([5e-9]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_is_unbiased_over_the_policy(estimator):
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    reference = torch.tensor([0.2, 0.2, 0.6], dtype=F64)
    exact = sum(
        p * math.log(p / q) for p, q in zip(policy.tolist(), reference.tolist(), strict=True)
    )
    estimates = token_kl(
        policy.log(), reference.log(), torch.ones(3, dtype=torch.bool), estimator=estimator
    )
    torch.testing.assert_close(float((policy * estimates).sum()), exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient(estimator):
    logprobs = torch.tensor([-0.3, -1.2, -2.0, -0.7], dtype=F64, requires_grad=True)
    reference = torch.tensor([-0.5, -0.9, -2.0, -5.0], dtype=F64)
    mask = torch.tensor([True, True, True, False])
    assert torch.autograd.gradcheck(
        lambda x: token_kl(x, reference, mask, estimator=estimator), (logprobs,)
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_masked_tokens_contribute_exactly_zero(estimator, poison):
    logprobs = torch.tensor([-1.0, poison, -2.0], requires_grad=True)
    reference = torch.tensor([-1.5, poison, poison])
    mask = torch.tensor([True, False, False])
    result = token_kl(logprobs, reference, mask, estimator=estimator)
    result.sum().backward()
    assert result.tolist()[1:] == [0.0, 0.0]
    assert logprobs.grad is not None
    assert logprobs.grad.tolist()[1:] == [0.0, 0.0]
    assert logprobs.grad[0].item() != 0.0


def test_refuses_an_unknown_estimator():
    with pytest.raises(AssertionError, match="'k4' is not in"):
        token_kl(torch.zeros(1), torch.zeros(1), torch.tensor([True]), estimator="k4")


class TestController:
    @pytest.mark.parametrize(
        ("observed", "expected"),
        [
            (6.0, 0.2),  # on target
            (6.6, 0.2 * (1 + 0.1 * 0.05)),  # 10 % over
            (5.4, 0.2 * (1 - 0.1 * 0.05)),
            (60.0, 0.2 * (1 + 0.2 * 0.05)),  # the error is clipped at 0.2
            (-3.0, 0.2 * (1 - 0.2 * 0.05)),
        ],
    )
    def test_hand_computed(self, observed, expected):
        # 500 samples of a horizon of 10,000: gain 0.05.
        state = adaptive_kl_controller(0.2, target=6.0, horizon=10_000)
        moved = update_kl_controller(state, observed_kl=observed, num_samples=500)
        assert moved.coefficient == pytest.approx(expected, rel=1e-12)
        assert (moved.target, moved.horizon) == (6.0, 10_000)
        assert state.coefficient == 0.2

    @pytest.mark.parametrize("observed", [0.0, 0.5, 0.95, 1.0, 1.1, 7.0])
    def test_equals_ground_truth(self, observed):
        state = adaptive_kl_controller(0.05, target=1.0, horizon=1000)
        moved = update_kl_controller(state, observed_kl=observed, num_samples=64)
        expected = ground_truth.adaptive_kl(0.05, observed, 1.0, 0.064)
        assert moved.coefficient == pytest.approx(expected, rel=1e-12)

    def test_stays_positive_when_a_batch_exceeds_the_horizon(self):
        state = adaptive_kl_controller(1.0, target=6.0, horizon=10)
        moved = update_kl_controller(state, observed_kl=0.0, num_samples=1000)
        assert moved.coefficient == pytest.approx(0.8)

    def test_fixed_never_moves(self):
        state = fixed_kl_controller(0.3)
        assert update_kl_controller(state, observed_kl=1e9, num_samples=10**6) == state

    @pytest.mark.parametrize("observed", [math.nan, math.inf])
    def test_refuses_a_kl_that_is_not_finite(self, observed):
        state = adaptive_kl_controller(1.0, target=6.0, horizon=10)
        with pytest.raises(AssertionError, match="observed KL is"):
            update_kl_controller(state, observed_kl=observed, num_samples=1)
