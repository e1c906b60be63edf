"""Importance weights of the learner over the engine, and the filters."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms.policy_losses.correction import (
    Correction,
    effective_sample_size,
    importance_correction,
)
from tests.unit.algorithms import ground_truth
from tests.unit.algorithms.ragged_cases import F64, flat_mask, poisoned, sampled, samples, sizes


def correct(gaps: list[float], lengths: list[int], **settings) -> Correction:
    learner = torch.tensor(gaps, dtype=F64)
    defaults = {"weight": "none", "cap": 2.0, "keep": "none", "low": 0.5, "high": 2.0}
    return importance_correction(
        learner,
        torch.zeros_like(learner),
        torch.tensor(lengths),
        torch.ones(len(gaps), dtype=torch.bool),
        **(defaults | settings),
    )


def weights(result: Correction) -> list[float]:
    return [round(x, 9) for x in result.weights.tolist()]


LOG2 = math.log(2)


def test_token_weights_are_cut_at_the_cap_only():
    result = correct([math.log(3), LOG2, math.log(0.1)], [3], weight="token")
    assert weights(result) == [2.0, 2.0, 0.1]
    assert result.truncated.tolist() == [True, False, False]
    assert result.kept.all()


def test_a_sequence_has_the_product_of_its_ratios_and_not_their_mean():
    result = correct([LOG2, LOG2, LOG2], [2, 1], weight="sequence", cap=3.0)
    assert weights(result) == [3.0, 3.0, 2.0]
    assert result.truncated.tolist() == [True, True, False]


def test_filters_by_token_by_product_and_by_geometric_mean():
    gaps = [LOG2 / 2, LOG2, 2 * LOG2, 0.0]
    token = correct(gaps, [3, 1], keep="token")
    assert weights(token) == [1.0, 1.0, 0.0, 1.0]
    assert token.kept.tolist() == [True, True, False, True]
    assert weights(correct(gaps, [3, 1], keep="sequence")) == [0.0, 0.0, 0.0, 1.0]
    # Geometric mean of the first: 2 ** (3.5 / 3) = 2.24.
    assert weights(correct(gaps, [3, 1], keep="geometric")) == [0.0, 0.0, 0.0, 1.0]
    assert weights(correct(gaps, [3, 1], keep="geometric", high=2.3)) == [1.0] * 4


def test_bounds_belong_to_the_filter():
    assert correct([0.0, 0.0], [2], keep="token", low=1.0, high=1.0).kept.all()


def test_weight_and_filter_together():
    # Token weights inside token bounds, nothing outside: both at once.
    result = correct([math.log(1.5), math.log(3.0)], [2], weight="token", keep="token", cap=5.0)
    assert weights(result) == [1.5, 0.0]


def test_overflow_is_cut_off():
    result = correct([1e6, -1e6], [1, 1], weight="token")
    assert weights(result) == [2.0, 0.0]
    assert correct([1e6], [1], weight="token", keep="token").weights.tolist() == [0.0]


@pytest.mark.parametrize("weight", ["none", "token", "sequence"])
@pytest.mark.parametrize("keep", ["none", "token", "sequence", "geometric"])
@settings(max_examples=30, deadline=None)
@given(drawn=samples(2, -1.5, 1.5))
def test_equals_ground_truth(weight, keep, drawn):
    masks, learner, generator = drawn
    mask = flat_mask(masks)
    bounds = {"cap": 1.7, "low": 0.61, "high": 1.83}
    result = importance_correction(
        poisoned(learner, mask),
        poisoned(generator, mask),
        sizes(masks),
        mask,
        weight=weight,
        keep=keep,
        **bounds,
    )
    expected = torch.zeros(mask.shape[0], dtype=F64)
    rows = []
    for new, old, keeps in zip(learner, generator, masks, strict=True):
        gaps = sampled([a - b for a, b in zip(new, old, strict=True)], keeps)
        rows += ground_truth.correction(gaps, weight=weight, keep=keep, **bounds) if gaps else []
    expected[mask] = torch.tensor(rows, dtype=F64)
    torch.testing.assert_close(result.weights, expected, rtol=1e-9, atol=1e-9)
    assert result.weights[~mask].tolist() == [0.0] * int((~mask).sum())
    assert not result.kept[~mask].any()
    assert torch.equal(result.kept & (result.weights > 0), result.kept)


class TestEffectiveSampleSize:
    def test_by_hand(self):
        mask = torch.tensor([True, True, False])
        assert effective_sample_size(torch.tensor([1.0, 1.0, 9.0]), mask) == 1.0
        # (1 + 3)^2 / (2 * 10).
        assert effective_sample_size(torch.tensor([1.0, 3.0, 9.0]), mask) == 0.8
        assert effective_sample_size(torch.tensor([1.0, 0.0, 9.0]), mask) == 0.5

    def test_nothing_left(self):
        assert effective_sample_size(torch.zeros(2), torch.tensor([True, True])) == 0.0
        assert effective_sample_size(torch.ones(2), torch.tensor([False, False])) == 0.0

    @given(st.lists(st.floats(0.01, 10), min_size=1, max_size=8))
    @settings(max_examples=40, deadline=None)
    def test_between_one_sample_and_all(self, drawn):
        size = effective_sample_size(
            torch.tensor(drawn, dtype=F64), torch.ones(len(drawn), dtype=torch.bool)
        )
        assert 1 / len(drawn) - 1e-9 <= size <= 1 + 1e-9


def test_names_that_are_none_are_shown():
    with pytest.raises(AssertionError, match="weight 'geometric' is not in"):
        correct([0.0], [1], weight="geometric")
    with pytest.raises(AssertionError, match="keep 'batch' is not in"):
        correct([0.0], [1], keep="batch")
