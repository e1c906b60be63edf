"""Accuracy and calibration of pairs against loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms.preferences.pair_statistics import (
    calibration_bins,
    correct_pairs,
    expected_calibration_error,
)
from tests.unit.algorithms import preference_ground_truth as truth
from tests.unit.algorithms.pair_cases import F64, columns, cuts, every, poisoned


def test_a_tie_counts_one_half():
    difference = torch.tensor([2.0, 0.0, -0.0, -1.0, math.nan, 3.0], requires_grad=True)
    mask = torch.tensor([True, True, True, True, True, False])
    correct = correct_pairs(difference, mask)
    assert correct.tolist() == [1.0, 0.5, 0.5, 0.0, 0.0, 0.0]
    assert correct.dtype == torch.float32
    assert not correct.requires_grad


def test_bins_by_hand():
    # Confidences 0.5, 0.75, 0.75, nearly 1, and 1 in float64; two bins: below and from 0.75.
    three = math.log(3)
    difference = torch.tensor([0.0, three + 1e-9, -three - 1e-9, 9.0, -800.0, 1.0], dtype=F64)
    mask = torch.tensor([True, True, True, True, True, False])
    bins = calibration_bins(difference, mask, num_bins=2)
    expected = [[1.0, 0.5, 0.5], [4.0, 1.5 + truth.sigmoid(9.0) + 1.0, 2.0]]
    torch.testing.assert_close(bins, torch.tensor(expected, dtype=F64), rtol=0, atol=1e-8)
    error = expected_calibration_error(bins)
    assert error == pytest.approx((0.5 + truth.sigmoid(9.0)) / 5, abs=1e-8)


@settings(max_examples=60, deadline=None)
@given(columns(1, -6, 6), st.integers(1, 7), st.integers(0, 1000))
def test_equals_ground_truth_for_any_split(drawn, num_bins, seed):
    mask, row = drawn
    # Next to an edge rounding decides; 0 itself is a tie and has no gap in any bin.
    edges = [math.log((num_bins + e) / (num_bins - e)) for e in range(num_bins)]
    row = [x + 1e-6 if x and any(abs(abs(x) - e) < 1e-7 for e in edges) else x for x in row]
    difference, kept = poisoned(row, mask), torch.tensor(mask, dtype=torch.bool)
    pieces = [
        calibration_bins(difference[a:b], kept[a:b], num_bins=num_bins)
        for a, b in cuts(len(mask), seed)
    ]
    bins = torch.stack(pieces).sum(dim=0)
    assert bins.shape == (num_bins, 3)
    valid = [x for x, keep in zip(row, mask, strict=True) if keep]
    expected = truth.calibration_error(valid, num_bins) if valid else 0.0
    assert expected_calibration_error(bins) == pytest.approx(expected, abs=1e-9)
    if valid:
        both = truth.calibration_error_of_both_orders(valid, num_bins)
        assert both == pytest.approx(expected, abs=1e-9)


def test_a_model_that_knows_how_often_it_is_right_has_no_error():
    generator = torch.Generator().manual_seed(2)
    strength = torch.randn(40000, generator=generator, dtype=F64) * 2
    won = torch.rand(40000, generator=generator) < torch.sigmoid(strength)
    honest = torch.where(won, strength, -strength)
    errors = [
        expected_calibration_error(calibration_bins(scale * honest, every(40000), num_bins=10))
        for scale in (1.0, 3.0, 0.2)
    ]
    assert errors[0] < 0.015
    assert errors[1] > 0.1
    assert errors[2] > 0.1


def test_a_nan_is_not_hidden():
    bins = calibration_bins(torch.tensor([math.nan, 1.0]), every(2), num_bins=3)
    assert math.isnan(expected_calibration_error(bins))


def test_refuses_what_does_not_fit():
    with pytest.raises(AssertionError, match="num_bins is 0"):
        calibration_bins(torch.zeros(1), every(1), num_bins=0)
    with pytest.raises(AssertionError, match=r"bins must be .* \[4, 3\], not .* \[4, 2\]"):
        expected_calibration_error(torch.zeros(4, 2))
