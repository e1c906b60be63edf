"""KTO against loops over the paper, with the reference point of the whole batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ray.algorithms.preferences.kto_loss import (
    KtoLoss,
    kto_loss,
    log_ratio_share,
    mismatched_answers,
)
from rlhf_ray.algorithms.reduce import mean_share
from tests.unit.algorithms import preference_ground_truth as truth
from tests.unit.algorithms.pair_cases import F64, assert_close, columns, cuts, every, poisoned


def kto(logprobs: Tensor, reference: Tensor, good: Tensor, mask: Tensor, mean: float) -> KtoLoss:
    return kto_loss(
        logprobs,
        reference,
        good,
        mask,
        mean_log_ratio=mean,
        beta=0.4,
        desirable_weight=1.25,
        undesirable_weight=0.5,
    )


class TestKto:
    def test_hand_computed(self):
        log3 = math.log(3)
        logprobs = torch.tensor([2 * log3, 2 * log3, 0.0], dtype=F64, requires_grad=True)
        result = kto_loss(
            logprobs,
            torch.zeros(3, dtype=F64),
            torch.tensor([True, False, True]),
            every(3),
            mean_log_ratio=log3,
            beta=1.0,
            desirable_weight=2.0,
            undesirable_weight=4.0,
        )
        # log ratio - z0 is log 3, log 3 and -log 3: sigmoid is 3/4, 3/4 and 1/4.
        assert result.per_answer.tolist() == pytest.approx([2 / 4, 4 * 3 / 4, 2 * 3 / 4])
        assert result.rewards.tolist() == pytest.approx([2 * log3, 2 * log3, 0.0])
        assert result.reference_point == log3
        result.per_answer.sum().backward()
        assert logprobs.grad is not None
        # sigmoid' = 3/16, down for good answers and up for the bad one.
        assert logprobs.grad.tolist() == pytest.approx([-6 / 16, 12 / 16, -6 / 16])

    @settings(max_examples=60, deadline=None)
    @given(columns(2), st.floats(-3, 3), st.data())
    def test_equals_ground_truth_and_never_reads_padding(self, drawn, mean, data):
        mask, *rows = drawn
        good = [data.draw(st.booleans()) for _ in mask]
        kept = torch.tensor(mask, dtype=torch.bool)
        leaf = poisoned(rows[0], mask).requires_grad_()
        flags = torch.tensor(good, dtype=torch.bool)
        result = kto(leaf, poisoned(rows[1], mask), flags, kept, mean)
        point = truth.reference_point([mean])
        ratios = [a - b if keep else 0.0 for a, b, keep in zip(*rows, mask, strict=True)]
        expected = [
            truth.kto_loss(ratio, flag, point, beta=0.4, weights=(1.25, 0.5)) if keep else 0.0
            for ratio, flag, keep in zip(ratios, good, mask, strict=True)
        ]
        assert_close(result.per_answer.detach(), expected)
        assert_close(result.rewards, [0.4 * ratio for ratio in ratios])
        assert not result.rewards.requires_grad
        assert result.reference_point == point
        result.per_answer.sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.grad[~kept].tolist() == [0.0] * int((~kept).sum())

    def test_gradient_against_numerical_differentiation(self):
        generator = torch.Generator().manual_seed(4)
        logprobs, reference = torch.randn(2, 20, generator=generator, dtype=F64) * 3
        good, mask = torch.rand(2, 20, generator=generator) < 0.6
        assert torch.autograd.gradcheck(
            lambda x: kto(x, reference, good, mask, 0.7).per_answer, (logprobs.requires_grad_(),)
        )

    @settings(max_examples=60, deadline=None)
    @given(columns(4), st.integers(0, 1000))
    def test_any_split_adds_up_to_the_whole(self, drawn, seed):
        mask, *rows = drawn
        kept, good = torch.tensor(mask, dtype=torch.bool), torch.arange(len(mask)) % 3 == 0
        logprobs, reference, mismatched, others = (poisoned(row, mask) for row in rows)
        count = int(kept.sum())
        pieces = [slice(a, b) for a, b in cuts(len(mask), seed)]
        mean = math.fsum(
            log_ratio_share(mismatched[piece], others[piece], kept[piece], count)
            for piece in pieces
        )
        ratios = [a - b for a, b, keep in zip(rows[2], rows[3], mask, strict=True) if keep]
        point = truth.reference_point(ratios) if ratios else 0.0
        losses = [
            kto(logprobs[piece], reference[piece], good[piece], kept[piece], mean)
            for piece in pieces
        ]
        for loss in losses:
            assert loss.reference_point == pytest.approx(point, rel=1e-9, abs=1e-9)
        total = math.fsum(
            mean_share(loss.per_answer, kept[piece], count).item()
            for loss, piece in zip(losses, pieces, strict=True)
        )
        whole = mean_share(kto(logprobs, reference, good, kept, point).per_answer, kept, count)
        assert total == pytest.approx(whole.item(), rel=1e-9, abs=1e-9)

    def test_a_share_is_not_clamped_has_no_gradient_and_is_wide(self):
        logprobs = torch.tensor([-1e8, -2.5, 1e8], requires_grad=True)
        share = log_ratio_share(logprobs, torch.zeros(3), every(3), 2)
        assert isinstance(share, float)
        assert share == -1.25

    def test_answers_to_different_prompts_are_shifted_by_one(self):
        assert mismatched_answers("abcd") == [3, 0, 1, 2]
        assert mismatched_answers("ab") == [1, 0]

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.sampled_from("abc"), min_size=1, max_size=8))
    def test_a_mismatched_answer_is_the_nearest_one_before_to_another_prompt(self, prompts):
        if len(set(prompts)) == 1:
            with pytest.raises(ValueError, match="all prompts are the same"):
                mismatched_answers(prompts)
            return
        assert mismatched_answers(prompts) == truth.mismatched_rows(prompts)

    def test_no_answer_has_no_mismatch(self):
        with pytest.raises(ValueError, match="all prompts are the same"):
            mismatched_answers([])

    def test_far_answers_keep_their_small_loss(self):
        logprobs = torch.tensor([100.0, -1e6], requires_grad=True)
        result = kto(logprobs, torch.zeros(2), torch.tensor([True, False]), every(2), 0.0)
        # 1 - sigmoid(40) is 0 even in float64; the loss is exp(-40).
        assert result.per_answer[0].item() == pytest.approx(1.25 * math.exp(-40), rel=1e-5)
        result.per_answer.sum().backward()
        assert logprobs.grad is not None
        assert logprobs.grad.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
    def test_computes_in_float32_or_wider(self, dtype):
        logprobs, reference = (torch.tensor([x], dtype=dtype) for x in (256.0, 1.0))
        result = kto(logprobs, reference, every(1), every(1), 0.0)
        assert result.rewards.dtype == torch.promote_types(dtype, torch.float32)
        assert result.rewards.item() == pytest.approx(0.4 * 255.0)

    @pytest.mark.parametrize("count", [0, 2])
    def test_no_answer_gives_zero_with_a_gradient_path(self, count):
        weight = torch.tensor(2.0, requires_grad=True)
        none, zero = torch.zeros(count, dtype=torch.bool), torch.zeros(count)
        assert log_ratio_share(zero, zero, none, 0) == 0.0
        loss = mean_share(kto(weight * zero, zero, none, none, 0.0).per_answer, none, 0)
        loss.backward()
        assert loss.item() == 0.0
        assert weight.grad is not None
        assert weight.grad.item() == 0.0

    def test_a_trained_nan_is_not_hidden(self):
        result = kto(torch.tensor([math.nan]), torch.zeros(1), every(1), every(1), 0.0)
        assert math.isnan(result.per_answer.item())
        result = kto(torch.zeros(1), torch.zeros(1), every(1), every(1), math.nan)
        assert math.isnan(result.per_answer.item())

    def test_refuses_what_does_not_fit(self):
        two = torch.zeros(2)
        with pytest.raises(
            AssertionError, match=r"desirable must be torch.bool \[2\], not .*float"
        ):
            kto(two, two, two, every(2), 0.0)
        with pytest.raises(AssertionError, match=r"logprobs must be .*\[2\], not .*\[3\]"):
            kto(torch.zeros(3), two, every(2), every(2), 0.0)
        with pytest.raises(AssertionError, match="reference_logprobs requires a gradient"):
            kto(two, torch.zeros(2, requires_grad=True), every(2), every(2), 0.0)
        with pytest.raises(
            AssertionError, match=r"mismatched_logprobs must be .*\[2\], not .*\[3\]"
        ):
            log_ratio_share(torch.zeros(3), two, every(2), 2)
        with pytest.raises(AssertionError, match="beta is 0"):
            kto_loss(
                two,
                two,
                every(2),
                every(2),
                mean_log_ratio=0.0,
                beta=0.0,
                desirable_weight=1.0,
                undesirable_weight=1.0,
            )
