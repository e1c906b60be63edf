"""The moving average of weights against slow ground truth."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms.ema import moving_average

NUMBERS = st.floats(-8, 8, width=32)


@settings(max_examples=100, deadline=None)
@given(values=st.lists(NUMBERS, min_size=2, max_size=8), decay=st.floats(0, 0.999))
def test_equals_exact_fractions(values, decay):
    average = torch.tensor([values[0]], dtype=torch.float64)
    exact = Fraction(values[0])
    for value in values[1:]:
        average = moving_average(average, torch.tensor([value]), decay=decay)
        exact = Fraction(decay) * exact + (1 - Fraction(decay)) * Fraction(value)
    assert average.item() == pytest.approx(float(exact), rel=1e-12, abs=1e-12)


def test_by_hand():
    average = moving_average(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 2.0]), decay=0.75)
    assert average.tolist() == [1.5, -1.0]


@settings(max_examples=50, deadline=None)
@given(value=NUMBERS, decay=st.floats(0, 0.9999))
def test_what_does_not_move_stays_exactly(value, decay):
    still = torch.tensor([value])
    assert torch.equal(moving_average(still, still, decay=decay), still)


@settings(max_examples=50, deadline=None)
@given(start=NUMBERS, value=NUMBERS)
def test_without_decay_it_is_the_latest_bit_for_bit(start, value):
    latest = torch.tensor([value])
    average = moving_average(torch.tensor([start]), latest, decay=0.0)
    assert torch.equal(average, latest)
    assert average is not latest


def test_neither_tensor_is_changed_and_the_format_is_that_of_the_average():
    average, latest = torch.tensor([1.0]), torch.tensor([2.0], dtype=torch.bfloat16)
    result = moving_average(average, latest, decay=0.5)
    assert (average.item(), latest.item(), result.item()) == (1.0, 2.0, 1.5)
    assert result.dtype == torch.float32


def test_bfloat16_would_lose_every_small_step():
    """Why the average is kept in float32: the same steps, and half of the way is gone."""
    latest = torch.tensor([1.5])
    fine, coarse = torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.bfloat16)
    for _ in range(700):
        fine = moving_average(fine, latest, decay=0.999)
        coarse = moving_average(coarse, latest, decay=0.999)
    assert fine.item() == pytest.approx(1.5 - 0.5 * 0.999**700, rel=1e-4)
    assert coarse.item() == 1.0


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(AssertionError):
        moving_average(torch.zeros(1), torch.zeros(1), decay=decay)


def test_other_shapes_are_refused():
    with pytest.raises(AssertionError, match="does not follow"):
        moving_average(torch.zeros(3), torch.zeros(1), decay=0.5)
