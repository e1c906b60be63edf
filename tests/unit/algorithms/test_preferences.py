"""DPO and its kin against loops over the papers; gradients by numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ray.algorithms.preferences.preference_loss import PreferenceLoss, preference_loss
from rlhf_ray.algorithms.reduce import mean_share
from tests.unit.algorithms import preference_ground_truth as truth
from tests.unit.algorithms.pair_cases import F64, assert_close, columns, cuts, every, poisoned

VARIANTS = [
    ("sigmoid", 0.0),
    ("sigmoid", 0.2),
    ("robust", 0.0),
    ("robust", 0.2),
    ("ipo", 0.0),
    ("hinge", 0.0),
]
every_variant = pytest.mark.parametrize(("variant", "smoothing"), VARIANTS)
summed_or_divided = pytest.mark.parametrize("divide", [False, True])


def dpo(
    logprobs: list[Tensor],
    mask: Tensor,
    *,
    variant: str = "sigmoid",
    beta: float = 0.3,
    smoothing: float = 0.0,
    lengths: list[Tensor] | None = None,
) -> PreferenceLoss:
    """Log-probabilities of policy and reference for both answers; divided by lengths if given."""
    chosen, rejected, reference_chosen, reference_rejected = logprobs
    ones = torch.ones_like(mask, dtype=torch.int64)
    chosen_lengths, rejected_lengths = lengths or [ones, ones]
    return preference_loss(
        chosen,
        rejected,
        reference_chosen,
        reference_rejected,
        chosen_lengths,
        rejected_lengths,
        mask,
        variant=variant,
        beta=beta,
        label_smoothing=smoothing,
        divide_by_length=lengths is not None,
    )


class TestPreferenceLoss:
    def test_hand_computed(self):
        log3 = math.log(3)
        # Log ratios of log 9 and 0, and of 0 and log 81 over 2 tokens; beta 1/2.
        logprobs = [
            torch.tensor([-1.0 + 2 * log3, -5.0], dtype=F64),
            torch.tensor([-2.0, -7.0 + 4 * log3], dtype=F64),
            torch.tensor([-1.0, -5.0], dtype=F64),
            torch.tensor([-2.0, -7.0], dtype=F64),
        ]
        summed = dpo(logprobs, every(2), beta=0.5)
        # sigmoid(log 3) = 3/4, sigmoid(-2 log 3) = 1/10.
        assert summed.per_pair.tolist() == pytest.approx([math.log(4 / 3), math.log(10)])
        assert summed.chosen_rewards.tolist() == pytest.approx([log3, 0.0])
        assert summed.rejected_rewards.tolist() == pytest.approx([0.0, 2 * log3])
        assert summed.correct.tolist() == [1.0, 0.0]
        lengths = [torch.tensor([1, 3]), torch.tensor([4, 2])]
        divided = dpo(logprobs, every(2), beta=0.5, lengths=lengths)
        assert divided.per_pair.tolist() == pytest.approx([math.log(4 / 3), math.log(4)])
        assert divided.rejected_rewards.tolist() == pytest.approx([0.0, log3])

    @every_variant
    @summed_or_divided
    @settings(max_examples=25, deadline=None)
    @given(columns(4), st.sampled_from([0.05, 0.4, 1.0]), st.data())
    def test_equals_ground_truth_and_never_reads_padding(
        self, variant, smoothing, divide, drawn, beta, data
    ):
        mask, *rows = drawn
        kept = torch.tensor(mask, dtype=torch.bool)
        size = st.lists(st.integers(0, 5), min_size=len(mask), max_size=len(mask))
        sizes = [data.draw(size), data.draw(size)]
        logprobs = [poisoned(row, mask) for row in rows]
        leaves = [logprobs[0].requires_grad_(), logprobs[1].requires_grad_()]
        lengths = [torch.tensor(row, dtype=torch.int64) for row in sizes]
        result = dpo(
            logprobs,
            kept,
            variant=variant,
            beta=beta,
            smoothing=smoothing,
            lengths=lengths if divide else None,
        )
        ratios = [
            [
                truth.log_ratio(new, old, length, divide=divide) if keep else 0.0
                for new, old, length, keep in zip(*parts, mask, strict=True)
            ]
            for parts in ((rows[0], rows[2], sizes[0]), (rows[1], rows[3], sizes[1]))
        ]
        losses, outcomes = [], []
        for chosen, rejected, keep in zip(*ratios, mask, strict=True):
            loss = truth.preference_loss(
                chosen - rejected, variant=variant, beta=beta, smoothing=smoothing
            )
            losses.append(loss if keep else 0.0)
            outcomes.append(truth.outcome(chosen - rejected) if keep else 0.0)
        for found, expected in (
            (result.per_pair.detach(), losses),
            (result.chosen_rewards, [beta * ratio for ratio in ratios[0]]),
            (result.rejected_rewards, [beta * ratio for ratio in ratios[1]]),
        ):
            assert_close(found, expected)
        assert result.correct.tolist() == outcomes
        assert not result.chosen_rewards.requires_grad
        assert not result.rejected_rewards.requires_grad
        result.per_pair.sum().backward()
        for leaf in leaves:
            assert leaf.grad is not None
            assert leaf.grad.isfinite().all()
            assert leaf.grad[~kept].tolist() == [0.0] * int((~kept).sum())

    @every_variant
    @summed_or_divided
    def test_gradient_against_numerical_differentiation(self, variant, smoothing, divide):
        generator = torch.Generator().manual_seed(3)
        chosen, rejected, *reference = torch.randn(4, 20, generator=generator, dtype=F64) * 4
        lengths = list(torch.randint(1, 6, (2, 20), generator=generator)) if divide else None
        mask = torch.rand(20, generator=generator) < 0.7
        assert torch.autograd.gradcheck(
            lambda c, r: (
                dpo(
                    [c, r, *reference], mask, variant=variant, smoothing=smoothing, lengths=lengths
                ).per_pair
            ),
            (chosen.requires_grad_(), rejected.requires_grad_()),
        )

    def test_gradient_of_dpo_is_that_of_the_paper(self):
        chosen = torch.tensor([1.0], dtype=F64, requires_grad=True)
        rejected = torch.tensor([3.0], dtype=F64, requires_grad=True)
        zero = torch.zeros(1, dtype=F64)
        dpo([chosen, rejected, zero, zero], every(1), beta=0.5).per_pair.sum().backward()
        # beta * sigmoid(reward of the rejected - reward of the chosen), both ways.
        expected = 0.5 * truth.sigmoid(0.5 * (3.0 - 1.0))
        assert chosen.grad is not None
        assert rejected.grad is not None
        assert chosen.grad.item() == pytest.approx(-expected)
        assert rejected.grad.item() == pytest.approx(expected)

    def test_robust_is_unbiased_under_flipped_labels(self):
        forwards, zero = torch.tensor([1.7], dtype=F64), torch.zeros(1, dtype=F64)
        right = dpo([forwards, zero, zero, zero], every(1), variant="robust", smoothing=0.2)
        flipped = dpo([zero, forwards, zero, zero], every(1), variant="robust", smoothing=0.2)
        clean = dpo([forwards, zero, zero, zero], every(1))
        expected = 0.8 * right.per_pair.item() + 0.2 * flipped.per_pair.item()
        assert expected == pytest.approx(clean.per_pair.item(), rel=1e-12)

    def test_conservative_dpo_is_least_where_the_label_is_believed(self):
        gaps = torch.linspace(-10, 10, 2001, dtype=F64)
        zero = torch.zeros_like(gaps)
        losses = dpo([gaps, zero, zero, zero], every(2001), beta=0.5, smoothing=0.2).per_pair
        best = float(gaps[losses.argmin()])
        assert truth.sigmoid(0.5 * best) == pytest.approx(0.8, abs=2e-3)

    @every_variant
    def test_far_gaps_are_finite(self, variant, smoothing):
        chosen = torch.tensor([-1e4, 1e4], requires_grad=True)
        zero = torch.zeros(2)
        result = dpo([chosen, zero, zero, zero], every(2), variant=variant, smoothing=smoothing)
        result.per_pair.sum().backward()
        assert chosen.grad is not None
        assert result.per_pair.isfinite().all()
        assert chosen.grad.isfinite().all()
        assert result.per_pair[0] > 1e3

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
    def test_computes_in_float32_or_wider(self, dtype):
        logprobs = [torch.tensor([x], dtype=dtype) for x in (-256.0, -1.0, 0.0, 0.0)]
        result = dpo(logprobs, every(1), beta=1.0)
        assert result.per_pair.dtype == torch.promote_types(dtype, torch.float32)
        assert result.per_pair.item() == 255.0

    @every_variant
    @settings(max_examples=12, deadline=None)
    @given(columns(4), st.integers(0, 1000))
    def test_any_split_adds_up_to_the_whole(self, variant, smoothing, drawn, seed):
        mask, *rows = drawn
        kept = torch.tensor(mask, dtype=torch.bool)
        logprobs = [poisoned(row, mask) for row in rows]
        count = int(kept.sum())

        def share(first: int, last: int) -> float:
            part = [column[first:last] for column in logprobs]
            result = dpo(part, kept[first:last], variant=variant, smoothing=smoothing)
            return mean_share(result.per_pair, kept[first:last], count).item()

        pieces = [share(a, b) for a, b in cuts(len(mask), seed)]
        assert math.fsum(pieces) == pytest.approx(share(0, len(mask)), rel=1e-9, abs=1e-9)

    @every_variant
    @pytest.mark.parametrize("count", [0, 2])
    def test_no_pair_gives_zero_with_a_gradient_path(self, variant, smoothing, count):
        weight = torch.tensor(2.0, requires_grad=True)
        none, zero = torch.zeros(count, dtype=torch.bool), torch.zeros(count)
        result = dpo([weight * zero, zero, zero, zero], none, variant=variant, smoothing=smoothing)
        loss = mean_share(result.per_pair, none, 0)
        loss.backward()
        assert loss.item() == 0.0
        assert weight.grad is not None
        assert weight.grad.item() == 0.0

    def test_a_trained_nan_is_not_hidden(self):
        nan, zero = torch.tensor([math.nan]), torch.zeros(1)
        for variant, smoothing in VARIANTS:
            result = dpo([nan, zero, zero, zero], every(1), variant=variant, smoothing=smoothing)
            assert math.isnan(result.per_pair.item())

    def test_refuses_what_does_not_fit(self):
        pair = torch.zeros(2)
        columns_of = [pair, pair, pair, pair]
        with pytest.raises(AssertionError, match=r"rejected_logprobs must be .*\[2\], not .*\[3\]"):
            dpo([pair, torch.zeros(3), pair, pair], every(2))
        with pytest.raises(AssertionError, match=r"chosen_lengths must be torch.int64 \[2\], not"):
            dpo(columns_of, every(2), lengths=[pair, torch.ones(2, dtype=torch.int64)])
        with pytest.raises(
            AssertionError, match=r"rejected_lengths must be torch.int64 \[2\], not"
        ):
            dpo(columns_of, every(2), lengths=[torch.ones(2, dtype=torch.int64), pair])
        with pytest.raises(AssertionError, match="reference_chosen_logprobs requires a gradient"):
            dpo([pair, pair, torch.zeros(2, requires_grad=True), pair], every(2))
        with pytest.raises(AssertionError, match="reference_rejected_logprobs requires a gradient"):
            dpo([pair, pair, pair, torch.zeros(2, requires_grad=True)], every(2))
        with pytest.raises(AssertionError, match="variant 'exo' is not in"):
            dpo(columns_of, every(2), variant="exo")
        with pytest.raises(AssertionError, match="beta is 0"):
            dpo(columns_of, every(2), beta=0.0)
        for smoothing in (-0.1, 0.5):
            with pytest.raises(AssertionError, match=r"label_smoothing is .*, not in"):
                dpo(columns_of, every(2), smoothing=smoothing)
        for variant in ("ipo", "hinge"):
            with pytest.raises(AssertionError, match=f"0.1, which '{variant}' does not know"):
                dpo(columns_of, every(2), variant=variant, smoothing=0.1)
