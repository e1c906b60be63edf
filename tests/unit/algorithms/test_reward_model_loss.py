"""The reward model's loss on pairs and on rankings against loops over the papers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ray.algorithms.preferences.ranked_pairs import pair_share, ranked_pairs
from rlhf_ray.algorithms.preferences.reward_model_loss import reward_model_loss
from tests.unit.algorithms import preference_ground_truth as truth
from tests.unit.algorithms.pair_cases import F64, assert_close, columns, cuts, every, poisoned


def zeros(count: int) -> Tensor:
    return torch.zeros(count, dtype=F64)


def expected_or_zero(rows: list[float], mask: list[bool]) -> Tensor:
    return torch.tensor([x if keep else 0.0 for x, keep in zip(rows, mask, strict=True)], dtype=F64)


@st.composite
def rankings(draw):
    """Ranks with ties and rewards of some rankings, of no and of one answer too."""
    answer = st.tuples(st.integers(0, 4), st.floats(-5, 5, allow_subnormal=False, width=32))
    return draw(st.lists(st.lists(answer, max_size=5), min_size=1, max_size=5))


class TestPairs:
    def test_hand_computed(self):
        chosen = torch.tensor([1.0, 0.0, 2.0], dtype=F64, requires_grad=True)
        rejected = torch.tensor([1.0, math.log(3), 0.0], dtype=F64, requires_grad=True)
        margins = torch.tensor([0.0, 0.0, 2.0], dtype=F64)
        result = reward_model_loss(chosen, rejected, margins, every(3), centering=0.25)
        # sigmoid(0) = 1/2, sigmoid(-log 3) = 1/4; the third has a margin of its difference.
        expected = [math.log(2) + 1.0, math.log(4) + math.log(3) ** 2 / 4, math.log(2) + 1.0]
        torch.testing.assert_close(result.per_pair.detach(), torch.tensor(expected, dtype=F64))
        torch.testing.assert_close(
            result.difference, torch.tensor([0.0, -math.log(3), 2.0], dtype=F64)
        )
        assert result.correct.tolist() == [0.5, 0.0, 1.0]
        assert not result.difference.requires_grad
        result.per_pair[0].backward()
        assert chosen.grad is not None
        assert rejected.grad is not None
        # -(1 - 1/2) of the likelihood, 2 * 0.25 * (1 + 1) of the centring.
        assert chosen.grad.tolist() == [0.5, 0.0, 0.0]
        assert rejected.grad.tolist() == [1.5, 0.0, 0.0]

    @settings(max_examples=60, deadline=None)
    @given(columns(3), st.sampled_from([0.0, 0.01, 0.7]))
    def test_equals_ground_truth_and_never_reads_padding(self, drawn, centering):
        mask, *rows = drawn
        chosen, rejected, margins = (poisoned(row, mask) for row in rows)
        leaves = chosen.requires_grad_(), rejected.requires_grad_()
        kept = torch.tensor(mask, dtype=torch.bool)
        result = reward_model_loss(chosen, rejected, margins, kept, centering=centering)
        expected = [
            truth.reward_model_loss(a, b, margin, centering) if keep else 0.0
            for a, b, margin, keep in zip(*rows, mask, strict=True)
        ]
        assert_close(result.per_pair.detach(), expected)
        differences = [a - b for a, b in zip(rows[0], rows[1], strict=True)]
        torch.testing.assert_close(result.difference, expected_or_zero(differences, mask))
        outcomes = [truth.outcome(difference) for difference in differences]
        assert result.correct.tolist() == expected_or_zero(outcomes, mask).tolist()
        result.per_pair.sum().backward()
        for leaf in leaves:
            assert leaf.grad is not None
            assert leaf.grad.isfinite().all()
            assert leaf.grad[~kept].tolist() == [0.0] * int((~kept).sum())

    def test_gradient_against_numerical_differentiation(self):
        generator = torch.Generator().manual_seed(1)
        chosen, rejected, margins = torch.randn(3, 20, generator=generator, dtype=F64) * 3
        mask = torch.rand(20, generator=generator) < 0.7
        assert torch.autograd.gradcheck(
            lambda c, r: reward_model_loss(c, r, margins, mask, centering=0.3).per_pair,
            (chosen.requires_grad_(), rejected.requires_grad_()),
        )

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
    def test_far_apart_rewards_are_finite_and_wide_enough(self, dtype):
        chosen = torch.tensor([300.0, -300.0], dtype=dtype, requires_grad=True)
        rejected = torch.tensor([-300.0, 300.0], dtype=dtype)
        result = reward_model_loss(chosen, rejected, torch.zeros(2), every(2))
        assert result.per_pair.dtype == torch.promote_types(dtype, torch.float32)
        assert result.per_pair.tolist() == pytest.approx([0.0, 600.0], abs=1e-12)
        result.per_pair.sum().backward()
        assert chosen.grad is not None
        assert chosen.grad.tolist() == pytest.approx([0.0, -1.0], abs=1e-12)

    def test_bfloat16_rewards_are_not_subtracted_in_bfloat16(self):
        chosen, rejected = (
            torch.tensor([256.0, 1.0]).bfloat16(),
            torch.tensor([1.0, 0.0]).bfloat16(),
        )
        result = reward_model_loss(chosen, rejected, torch.zeros(2), every(2))
        assert result.difference.tolist() == [255.0, 1.0]
        assert result.per_pair[1].item() == pytest.approx(math.log1p(math.exp(-1)), rel=1e-6)

    def test_a_trained_nan_is_not_hidden(self):
        nan = torch.tensor([math.nan])
        result = reward_model_loss(nan, torch.zeros(1), torch.zeros(1), every(1))
        assert math.isnan(result.per_pair.item())
        assert result.correct.item() == 0.0

    def test_refuses_what_does_not_fit(self):
        pair = torch.zeros(2)
        with pytest.raises(
            AssertionError, match=r"margins must be floating point \[2\], not .*\[3\]"
        ):
            reward_model_loss(pair, pair, torch.zeros(3), every(2))
        with pytest.raises(
            AssertionError, match=r"chosen_rewards must be .* not torch.int64 \[2\]"
        ):
            reward_model_loss(pair.long(), pair, pair, every(2))
        with pytest.raises(AssertionError, match="margins requires a gradient"):
            reward_model_loss(pair, pair, pair.clone().requires_grad_(), every(2))
        with pytest.raises(AssertionError, match="centering is -1"):
            reward_model_loss(pair, pair, pair, every(2), centering=-1.0)


class TestRankings:
    def test_by_hand(self):
        # The first ranking has three answers in the order 1, 2, 0, the second one, the third two.
        pairs = ranked_pairs(torch.tensor([2, 0, 1, 5, 1, 0]), torch.tensor([3, 1, 2]), every(6))
        named = list(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True))
        assert sorted(named) == [(1, 0), (1, 2), (2, 0), (5, 4)]
        weights = dict(zip(named, pairs.weights.tolist(), strict=True))
        assert weights == pytest.approx({(1, 0): 1 / 3, (1, 2): 1 / 3, (2, 0): 1 / 3, (5, 4): 1.0})
        assert pairs.num_rankings == 2

    @settings(max_examples=60, deadline=None)
    @given(rankings(), st.data())
    def test_every_ranking_counts_once(self, drawn, data):
        answers = [answer for ranking in drawn for answer in ranking]
        mask = [data.draw(st.sampled_from([True, True, True, False])) for _ in answers]
        flags = iter(mask)
        kept = [[answer for answer in ranking if next(flags)] for ranking in drawn]
        losses = [
            truth.ranking_loss([reward for _, reward in rows], [rank for rank, _ in rows])
            for rows in kept
        ]
        losses = [loss for loss in losses if loss is not None]
        ranks = torch.tensor([rank for rank, _ in answers], dtype=torch.int64)
        rewards = poisoned([reward for _, reward in answers], mask).requires_grad_()
        lengths = torch.tensor([len(ranking) for ranking in drawn], dtype=torch.int64)
        pairs = ranked_pairs(ranks, lengths, torch.tensor(mask, dtype=torch.bool))
        num = pairs.chosen.shape[0]
        result = reward_model_loss(
            rewards[pairs.chosen], rewards[pairs.rejected], zeros(num), every(num)
        )
        loss = pair_share(result.per_pair, pairs.weights, every(num), pairs.num_rankings)
        assert pairs.num_rankings == len(losses)
        expected = math.fsum(losses) / len(losses) if losses else 0.0
        assert loss.item() == pytest.approx(expected, rel=1e-9)
        loss.backward()
        assert rewards.grad is not None
        assert rewards.grad.isfinite().all()

    def test_refuses_what_does_not_fit(self):
        ranks, lengths = torch.tensor([0, 1]), torch.tensor([2])
        with pytest.raises(AssertionError, match=r"ranks must be torch.int64 \[2\], not .*float32"):
            ranked_pairs(ranks.float(), lengths, every(2))
        with pytest.raises(AssertionError, match="sums to 2, not to the 3"):
            ranked_pairs(torch.tensor([0, 1, 2]), lengths, every(3))
        with pytest.raises(AssertionError, match=r"weights must be .* not torch.int64"):
            pair_share(zeros(2), ranks, every(2), 1)
        with pytest.raises(AssertionError, match="weights requires a gradient"):
            pair_share(zeros(2), zeros(2).requires_grad_(), every(2), 1)


class TestShare:
    @settings(max_examples=60, deadline=None)
    @given(columns(2), st.integers(0, 1000))
    def test_any_split_adds_up_to_the_whole(self, drawn, seed):
        mask, *rows = drawn
        values, weights = (poisoned(row, mask) for row in rows)
        values.requires_grad_()
        kept = torch.tensor(mask, dtype=torch.bool)
        count = int(kept.sum())
        whole = pair_share(values, weights, kept, count)
        total = math.fsum(a * b for a, b, keep in zip(*rows, mask, strict=True) if keep)
        assert whole.item() == pytest.approx(total / max(count, 1), rel=1e-9, abs=1e-9)
        pieces = [
            pair_share(values[a:b], weights[a:b], kept[a:b], count).item()
            for a, b in cuts(len(mask), seed)
        ]
        assert math.fsum(pieces) == pytest.approx(whole.item(), rel=1e-9, abs=1e-9)
        whole.backward()
        gradient = [
            w / max(count, 1) if keep else 0.0 for w, keep in zip(rows[1], mask, strict=True)
        ]
        assert values.grad is not None
        assert values.grad.tolist() == pytest.approx(gradient, rel=1e-12)

    def test_float32_losses_are_added_in_float64(self):
        values = torch.full((3,), 1e8)
        values[1] = 1.0
        share = pair_share(values, torch.tensor([1.0, 1.0, -1.0]), every(3), 1)
        assert share.item() == 1.0

    @pytest.mark.parametrize("count", [0, 3])
    def test_no_pair_gives_zero_with_a_gradient_path(self, count):
        weight = torch.tensor(2.0, dtype=F64, requires_grad=True)
        rewards, none = weight * torch.ones(count, dtype=F64), torch.zeros(count, dtype=torch.bool)
        result = reward_model_loss(rewards, rewards, zeros(count), none)
        loss = pair_share(result.per_pair, torch.ones(count, dtype=F64), none, 0)
        loss.backward()
        assert loss.item() == 0.0
        assert weight.grad is not None
        assert weight.grad.item() == 0.0


def test_a_ranking_of_two_is_a_pair():
    rewards = torch.tensor([0.3, -1.2, 2.0, 0.5], dtype=F64)
    pairs = ranked_pairs(torch.tensor([1, 0, 0, 1]), torch.tensor([2, 2]), every(4))
    assert list(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)) == [
        (1, 0),
        (2, 3),
    ]
    assert pairs.weights.tolist() == [1.0, 1.0]
    losses = [truth.ranking_loss(list(row), [0, 1]) for row in ((-1.2, 0.3), (2.0, 0.5))]
    result = reward_model_loss(rewards[pairs.chosen], rewards[pairs.rejected], zeros(2), every(2))
    assert result.per_pair.tolist() == pytest.approx(losses)
    assert result.correct.tolist() == [0.0, 1.0]
