"""Ratios and policy losses: values by loops, gradients by numbers, masked NaN by exact zeros."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ray.algorithms.policy_losses.cispo import cispo_loss
from rlhf_ray.algorithms.policy_losses.clip import PolicyLoss, clipped_loss, unclipped_loss
from rlhf_ray.algorithms.policy_losses.covariance import (
    clip_cov_tokens,
    kl_cov_tokens,
    token_covariance,
    with_kl_penalty,
    without_gradient,
)
from rlhf_ray.algorithms.policy_losses.gmpo import gmpo_loss
from rlhf_ray.algorithms.policy_losses.ratio import Ratio, probability_ratio
from rlhf_ray.algorithms.policy_losses.sapo import sapo_loss
from tests.unit.algorithms import ground_truth
from tests.unit.algorithms.ragged_cases import (
    F64,
    flat,
    flat_mask,
    poisoned,
    sampled,
    samples,
    sizes,
)

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
CLAMP = 20.0


def ratio_of(
    logprobs: Tensor, old: Tensor, lengths: Tensor, mask: Tensor, level: str = "token"
) -> Ratio:
    return probability_ratio(logprobs, old, lengths, mask, level=level, log_ratio_clamp=CLAMP)


def gspo(logprobs: Tensor, old: Tensor, adv: Tensor, lengths: Tensor, mask: Tensor) -> PolicyLoss:
    ratio = ratio_of(logprobs, old, lengths, mask, "sequence")
    return clipped_loss(ratio, adv, mask, clip_low=0.2, clip_high=0.3, dual_clip=None)


def dual(logprobs: Tensor, old: Tensor, adv: Tensor, lengths: Tensor, mask: Tensor) -> PolicyLoss:
    ratio = ratio_of(logprobs, old, lengths, mask)
    return clipped_loss(ratio, adv, mask, clip_low=0.2, clip_high=0.3, dual_clip=1.5)


def plain(logprobs: Tensor, old: Tensor, adv: Tensor, lengths: Tensor, mask: Tensor) -> PolicyLoss:
    return unclipped_loss(ratio_of(logprobs, old, lengths, mask), adv, mask)


def sapo(logprobs: Tensor, old: Tensor, adv: Tensor, lengths: Tensor, mask: Tensor) -> PolicyLoss:
    ratio = ratio_of(logprobs, old, lengths, mask)
    return sapo_loss(ratio, adv, mask, positive_temperature=1.0, negative_temperature=1.5)


def gmpo(logprobs: Tensor, old: Tensor, adv: Tensor, lengths: Tensor, mask: Tensor) -> PolicyLoss:
    ratio = ratio_of(logprobs, old, lengths, mask)
    return gmpo_loss(ratio, adv, lengths, mask, clip_low=0.2, clip_high=0.3, log_ratio_clamp=20.0)


def kl_cov(logprobs: Tensor, old: Tensor, adv: Tensor, lengths: Tensor, mask: Tensor) -> PolicyLoss:
    ratio = ratio_of(logprobs, old, lengths, mask)
    chosen = kl_cov_tokens(token_covariance(old, adv, mask), mask, share=0.3)
    return with_kl_penalty(unclipped_loss(ratio, adv, mask), ratio, chosen, coefficient=0.7)


def cispo(logprobs: Tensor, old: Tensor, adv: Tensor, lengths: Tensor, mask: Tensor) -> PolicyLoss:
    ratio = ratio_of(logprobs, old, lengths, mask)
    return cispo_loss(logprobs, ratio, adv, mask, clip_low=0.2, clip_high=0.3)


Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], PolicyLoss]
DIFFERENTIABLE: dict[str, Loss] = {
    "gspo": gspo,
    "dual": dual,
    "unclipped": plain,
    "sapo": sapo,
    "gmpo": gmpo,
    "kl_cov": kl_cov,
}
LOSSES: dict[str, Loss] = {**DIFFERENTIABLE, "cispo": cispo}


def case(seed: int, num: int = 24) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Away from kinks: gaps of 0.05, 0.15, 0.25 and 0.45 and their negatives."""
    generator = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(num, generator=generator, dtype=F64)
    places = torch.randint(0, 8, (num,), generator=generator)
    gaps = torch.tensor([-0.45, -0.25, -0.15, -0.05, 0.05, 0.15, 0.25, 0.45], dtype=F64)[places]
    advantages = torch.randn(num, generator=generator, dtype=F64)
    lengths = torch.tensor([num // 3, 0, num // 3, num - 2 * (num // 3)])
    mask = torch.rand(num, generator=generator) < 0.7
    return old + gaps, old, advantages, lengths, mask


class TestRatio:
    def test_sequence_by_hand(self):
        logprobs = torch.tensor([0.2, 5.0, 0.4, -1.0], dtype=F64)
        mask = torch.tensor([True, False, True, True])
        result = ratio_of(
            logprobs, torch.zeros(4, dtype=F64), torch.tensor([3, 1]), mask, "sequence"
        )
        expected = [math.exp(0.3), 1.0, math.exp(0.3), math.exp(-1)]
        torch.testing.assert_close(result.ratio, torch.tensor(expected, dtype=F64))

    @pytest.mark.parametrize("level", ["token", "sequence", "sequence_token"])
    @settings(max_examples=60, deadline=None)
    @given(drawn=samples(2, -25, 25))
    def test_equals_ground_truth(self, level, drawn):
        masks, logprobs, old = drawn
        mask = flat_mask(masks)
        result = ratio_of(poisoned(logprobs, mask), poisoned(old, mask), sizes(masks), mask, level)
        expected, clamped = [], []
        for new, before, keeps in zip(logprobs, old, masks, strict=True):
            gaps = [a - b for a, b in zip(new, before, strict=True)]
            kept = sampled(gaps, keeps)
            for gap, keep in zip(gaps, keeps, strict=True):
                exponent = gap if level == "token" else math.fsum(kept) / max(len(kept), 1)
                bounded = max(-CLAMP, min(CLAMP, exponent))
                expected.append(math.exp(bounded) if keep else 1.0)
                clamped.append(keep and abs(exponent) > CLAMP)
                if level != "token" and keep:
                    assert expected[-1] == pytest.approx(
                        ground_truth.sequence_ratio(gaps, keeps, CLAMP), rel=1e-12
                    )
        torch.testing.assert_close(result.ratio, torch.tensor(expected, dtype=F64), **CLOSE)
        # Next to the clamp itself rounding decides.
        sure = torch.tensor([abs(math.log(x)) < 19.999 for x in expected], dtype=torch.bool)
        assert not (result.clamped & sure).any()
        assert result.clamped.tolist() == clamped or not sure.all()

    def test_gspo_differentiates_the_mean_and_gspo_token_the_token(self):
        old = torch.zeros(3, dtype=F64)
        mask = torch.ones(3, dtype=torch.bool)
        weights = torch.tensor([1.0, 10.0, 100.0], dtype=F64)
        gradients = {}
        for level in ("sequence", "sequence_token"):
            leaf = torch.tensor([0.1, 0.2, 0.3], dtype=F64, requires_grad=True)
            ratio = ratio_of(leaf, old, torch.tensor([3]), mask, level).ratio
            (ratio * weights).sum().backward()
            gradients[level] = leaf.grad
        scale = math.exp(0.2)
        mean = torch.full((3,), 111 / 3 * scale, dtype=F64)
        torch.testing.assert_close(gradients["sequence"], mean)
        torch.testing.assert_close(gradients["sequence_token"], weights * scale)


class TestEverySurrogate:
    @pytest.mark.parametrize("loss", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE)
    @pytest.mark.parametrize("seed", range(3))
    def test_gradient_against_numerical_differentiation(self, loss, seed):
        logprobs, old, advantages, lengths, mask = case(seed)
        assert torch.autograd.gradcheck(
            lambda x: loss(x, old, advantages, lengths, mask).per_token,
            (logprobs.requires_grad_(),),
        )

    @pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
    @pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
    def test_masked_tokens_contribute_exactly_zero(self, loss, poison):
        logprobs, old, advantages, lengths, mask = case(7)
        clean = logprobs.clone().requires_grad_()
        loss(clean, old, advantages, lengths, mask).per_token.sum().backward()
        dirty = torch.where(mask, logprobs, poison).requires_grad_()
        result = loss(
            dirty,
            torch.where(mask, old, poison),
            torch.where(mask, advantages, poison),
            lengths,
            mask,
        )
        result.per_token.sum().backward()
        assert result.per_token[~mask].tolist() == [0.0] * int((~mask).sum())
        assert result.ratio[~mask].tolist() == [1.0] * int((~mask).sum())
        assert not result.clipped[~mask].any()
        assert torch.equal(dirty.grad, clean.grad)
        assert dirty.grad[~mask].tolist() == [0.0] * int((~mask).sum())

    @pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
    def test_on_policy_the_gradient_is_that_of_reinforce(self, loss):
        logprobs, _, _, lengths, mask = case(3)
        # Sequence-level losses see one advantage per sequence.
        per_sequence = torch.tensor([1.0, 5.0, -2.0, 0.5], dtype=F64)
        advantages = torch.repeat_interleave(per_sequence, lengths)
        leaf = logprobs.requires_grad_()
        result = loss(leaf, leaf.detach(), advantages, lengths, mask)
        result.per_token.sum().backward()
        expected = torch.where(mask, -advantages, 0.0)
        torch.testing.assert_close(leaf.grad, expected, **CLOSE)
        assert result.ratio.tolist() == [1.0] * 24

    @pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
    def test_a_batch_without_a_sampled_token(self, loss):
        leaf = torch.zeros(4, dtype=F64, requires_grad=True)
        zeros, none = torch.zeros(4, dtype=F64), torch.zeros(4, dtype=torch.bool)
        result = loss(leaf, zeros, zeros + 1, torch.tensor([4, 0]), none)
        result.per_token.sum().backward()
        assert result.per_token.tolist() == [0.0] * 4
        assert leaf.grad.tolist() == [0.0] * 4

    @pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
    def test_shapes_that_do_not_fit_are_shown(self, loss):
        logprobs, old, advantages, lengths, mask = case(1)
        with pytest.raises(AssertionError, match=r"advantages must be floating point \[24\], not"):
            loss(logprobs, old, advantages[1:], lengths, mask)


class TestDualClip:
    def test_by_hand(self):
        # A < 0: the loss rises with the ratio up to the bound. A > 0: nothing changes.
        ratios = torch.tensor([1.4, 3.0, 3.0, 0.5], dtype=F64)
        advantages = torch.tensor([-1.0, -1.0, 1.0, -1.0], dtype=F64)
        leaf = ratios.log().requires_grad_()
        mask = torch.ones(4, dtype=torch.bool)
        result = dual(leaf, torch.zeros(4, dtype=F64), advantages, torch.tensor([4]), mask)
        result.per_token.sum().backward()
        torch.testing.assert_close(
            result.per_token.detach(), torch.tensor([1.4, 1.5, -1.3, 0.8], dtype=F64)
        )
        assert result.clipped.tolist() == [False, True, True, True]
        torch.testing.assert_close(leaf.grad, torch.tensor([1.4, 0.0, 0.0, 0.0], dtype=F64))

    @pytest.mark.parametrize("seed", range(3))
    def test_equals_ground_truth(self, seed):
        logprobs, old, advantages, lengths, mask = case(seed)
        logprobs = logprobs + (logprobs - old)  # some ratios beyond the bound
        result = dual(logprobs, old, advantages, lengths, mask)
        expected = []
        for new, before, advantage, keep in zip(logprobs, old, advantages, mask, strict=True):
            clipped = ground_truth.policy_loss(
                float(new), float(before), float(advantage), clip_low=0.2, clip_high=0.3, clamp=20
            )
            bounded = ground_truth.dual_clip_loss(clipped, float(advantage), 1.5)
            expected.append(bounded if keep else 0.0)
        torch.testing.assert_close(result.per_token, torch.tensor(expected, dtype=F64), **CLOSE)


class TestGspo:
    @settings(max_examples=60, deadline=None)
    @given(drawn=samples(3))
    def test_equals_ground_truth(self, drawn):
        masks, logprobs, old, advantages = drawn
        mask = flat_mask(masks)
        result = gspo(
            *(poisoned(rows, mask) for rows in (logprobs, old, advantages)), sizes(masks), mask
        )
        expected = []
        for new, before, signal, keeps in zip(logprobs, old, advantages, masks, strict=True):
            gaps = [a - b for a, b in zip(new, before, strict=True)]
            log_ratio = math.log(ground_truth.sequence_ratio(gaps, keeps, CLAMP))
            expected += [
                ground_truth.policy_loss(
                    log_ratio, 0.0, advantage, clip_low=0.2, clip_high=0.3, clamp=CLAMP
                )
                if keep
                else 0.0
                for advantage, keep in zip(signal, keeps, strict=True)
            ]
        torch.testing.assert_close(result.per_token, torch.tensor(expected, dtype=F64), **CLOSE)


class TestCispo:
    def test_by_hand(self):
        leaf = torch.tensor([-1.0, -2.0, -3.0], dtype=F64, requires_grad=True)
        old = leaf.detach() - torch.tensor([2.0, 0.5, 1.1], dtype=F64).log()
        advantages = torch.tensor([2.0, 1.0, -1.0], dtype=F64)
        mask = torch.ones(3, dtype=torch.bool)
        result = cispo(leaf, old, advantages, torch.tensor([3]), mask)
        result.per_token.sum().backward()
        torch.testing.assert_close(
            result.per_token.detach(), torch.tensor([2.6, 1.6, -3.3], dtype=F64)
        )
        # The weight is a constant: no token loses its gradient, and none has the ratio's.
        torch.testing.assert_close(leaf.grad, torch.tensor([-2.6, -0.8, 1.1], dtype=F64))
        assert result.clipped.tolist() == [True, True, False]

    @settings(max_examples=60, deadline=None)
    @given(drawn=samples(3))
    def test_equals_ground_truth(self, drawn):
        masks, logprobs, old, advantages = drawn
        mask = flat_mask(masks)
        result = cispo(
            *(poisoned(rows, mask) for rows in (logprobs, old, advantages)), sizes(masks), mask
        )
        columns = zip(flat(logprobs), flat(old), flat(advantages), mask, strict=True)
        expected = [
            ground_truth.cispo(float(n), math.exp(float(n - o)), float(a), 0.2, 0.3)
            if keep
            else 0.0
            for n, o, a, keep in columns
        ]
        torch.testing.assert_close(result.per_token, torch.tensor(expected, dtype=F64), **CLOSE)


class TestSapo:
    def test_at_ratio_one_by_hand(self):
        zeros, mask = torch.zeros(2, dtype=F64), torch.ones(2, dtype=torch.bool)
        result = sapo(zeros, zeros, torch.tensor([1.0, -3.0], dtype=F64), torch.tensor([2]), mask)
        # 4 / tau * 1/2 with tau 1 and 1.5.
        torch.testing.assert_close(result.per_token, torch.tensor([-2.0, 4.0], dtype=F64))

    @settings(max_examples=60, deadline=None)
    @given(drawn=samples(3))
    def test_equals_ground_truth(self, drawn):
        masks, logprobs, old, advantages = drawn
        mask = flat_mask(masks)
        result = sapo(
            *(poisoned(rows, mask) for rows in (logprobs, old, advantages)), sizes(masks), mask
        )
        columns = zip(flat(logprobs), flat(old), flat(advantages), mask, strict=True)
        expected = [
            ground_truth.sapo(math.exp(float(n - o)), float(a), 1.0, 1.5) if keep else 0.0
            for n, o, a, keep in columns
        ]
        torch.testing.assert_close(result.per_token, torch.tensor(expected, dtype=F64), **CLOSE)


class TestGmpo:
    def test_by_hand(self):
        leaf = torch.tensor([0.1, 0.9, -0.5, 0.1], dtype=F64, requires_grad=True)
        mask = torch.ones(4, dtype=torch.bool)
        advantages = torch.tensor([2.0, 2.0, -1.0, -1.0], dtype=F64)
        result = gmpo(leaf, torch.zeros(4, dtype=F64), advantages, torch.tensor([2, 2]), mask)
        result.per_token.sum().backward()
        # exp((0.1 + 0.3) / 2): 0.9 is cut at 0.3. exp((-0.2 + 0.1) / 2): -0.5 at -0.2.
        up, down = 2 * math.exp(0.2), math.exp(-0.05)
        torch.testing.assert_close(
            result.per_token.detach(), torch.tensor([-up, -up, down, down], dtype=F64)
        )
        assert result.clipped.tolist() == [False, True, True, False]
        torch.testing.assert_close(leaf.grad, torch.tensor([-up, 0, 0, down], dtype=F64))

    @pytest.mark.parametrize("gap", [25.0, 100.0])
    def test_the_open_side_is_clamped(self, gap):
        # A negative advantage leaves large ratios unclipped: e^25 is 7.2e10, and e^100 infinite.
        leaf = torch.tensor([gap, gap, 0.1], requires_grad=True)
        lengths, mask = torch.tensor([2, 1]), torch.ones(3, dtype=torch.bool)
        result = gmpo(leaf, torch.zeros(3), torch.tensor([-1.0, -1.0, 1.0]), lengths, mask)
        result.per_token.sum().backward()
        assert result.per_token[0].item() == pytest.approx(math.exp(20.0), rel=1e-5)
        assert result.clamped.tolist() == [True, True, False]
        assert leaf.grad is not None
        assert leaf.grad.tolist() == pytest.approx([0.0, 0.0, -math.exp(0.1)])

    @settings(max_examples=60, deadline=None)
    @given(drawn=samples(3))
    def test_equals_ground_truth(self, drawn):
        masks, logprobs, old, advantages = drawn
        mask = flat_mask(masks)
        result = gmpo(
            *(poisoned(rows, mask) for rows in (logprobs, old, advantages)), sizes(masks), mask
        )
        expected = []
        for new, before, signal, keeps in zip(logprobs, old, advantages, masks, strict=True):
            gaps = sampled([a - b for a, b in zip(new, before, strict=True)], keeps)
            loss = ground_truth.gmpo(gaps, sampled(signal, keeps), 0.2, 0.3) if gaps else 0.0
            expected += [loss if keep else 0.0 for keep in keeps]
        torch.testing.assert_close(result.per_token, torch.tensor(expected, dtype=F64), **CLOSE)


class TestCovariance:
    @settings(max_examples=60, deadline=None)
    @given(drawn=samples(2))
    def test_equals_ground_truth(self, drawn):
        masks, logprobs, advantages = drawn
        mask = flat_mask(masks)
        result = token_covariance(poisoned(logprobs, mask), poisoned(advantages, mask), mask)
        chosen = flat(logprobs)[mask].tolist(), flat(advantages)[mask].tolist()
        expected = torch.zeros_like(result)
        if chosen[0]:
            expected[mask] = torch.tensor(ground_truth.covariances(*chosen), dtype=F64)
        torch.testing.assert_close(result, expected, **CLOSE)

    def test_kl_cov_takes_the_largest(self):
        covariance = torch.tensor([5.0, 1.0, 9.0, 3.0, 3.0, 2.0])
        mask = torch.tensor([True, True, False, True, True, True])
        taken = kl_cov_tokens(covariance, mask, share=0.4)
        assert taken.tolist() == [True, False, False, True, False, False]
        one = kl_cov_tokens(covariance, mask, share=1e-9)
        assert one.tolist() == [True, False, False, False, False, False]

    def test_clip_cov_draws_from_the_candidates(self):
        covariance = torch.arange(100.0)
        mask = torch.arange(100) % 2 == 0
        taken = clip_cov_tokens(covariance, mask, share=0.1, low=10.0, high=60.0, seed=1)
        assert int(taken.sum()) == 5
        assert not taken[~mask].any()
        assert covariance[taken].min() > 10
        assert covariance[taken].max() < 60
        again = clip_cov_tokens(covariance, mask, share=0.1, low=10.0, high=60.0, seed=1)
        other = clip_cov_tokens(covariance, mask, share=0.1, low=10.0, high=60.0, seed=2)
        assert torch.equal(taken, again)
        assert not torch.equal(taken, other)

    def test_bounds_are_open_and_nothing_may_be_left(self):
        covariance, mask = torch.tensor([1.0, 5.0]), torch.ones(2, dtype=torch.bool)
        assert not clip_cov_tokens(covariance, mask, share=1.0, low=1.0, high=5.0, seed=0).any()

    def test_chosen_tokens_lose_loss_and_gradient(self):
        logprobs, old, advantages, lengths, mask = case(2)
        leaf = logprobs.requires_grad_()
        chosen = torch.zeros_like(mask)
        chosen[:5] = True
        loss = plain(leaf, old, advantages, lengths, mask)
        result = without_gradient(loss, chosen)
        result.per_token.sum().backward()
        assert result.per_token[:5].tolist() == [0.0] * 5
        assert leaf.grad[:5].tolist() == [0.0] * 5
        assert torch.equal(result.per_token[5:], loss.per_token[5:])
        assert result.clipped[:5].all()

    def test_penalty_by_hand(self):
        leaf = torch.tensor([0.5, -0.5, 0.25], dtype=F64, requires_grad=True)
        zeros, mask = torch.zeros(3, dtype=F64), torch.ones(3, dtype=torch.bool)
        ratio = ratio_of(leaf, zeros, torch.tensor([3]), mask)
        chosen = torch.tensor([True, True, False])
        result = with_kl_penalty(unclipped_loss(ratio, zeros, mask), ratio, chosen, coefficient=2.0)
        result.per_token.sum().backward()
        torch.testing.assert_close(
            result.per_token.detach(), torch.tensor([1.0, 1.0, 0.0], dtype=F64)
        )
        torch.testing.assert_close(leaf.grad, torch.tensor([2.0, -2.0, 0.0], dtype=F64))

    @given(st.integers(1, 40), st.floats(0.01, 1.0))
    @settings(max_examples=40, deadline=None)
    def test_never_more_than_the_share_but_one(self, num, share):
        covariance, mask = torch.rand(num), torch.ones(num, dtype=torch.bool)
        taken = int(kl_cov_tokens(covariance, mask, share=share).sum())
        assert taken == max(1, int(share * num))
