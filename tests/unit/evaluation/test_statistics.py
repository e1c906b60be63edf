"""Statistics of answers against slow ground truth."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.evaluation.statistics import (
    distinct_share,
    estimate,
    pass_at_k,
    perplexity,
    repeated_share,
    win_rate,
    win_share,
)

TOKENS = st.lists(st.integers(0, 3), max_size=12)
REWARDS = st.lists(st.integers(-2, 2).map(float), min_size=1, max_size=5)


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), st.data())
def test_pass_at_k_is_the_share_of_all_choices_of_k_with_a_right_one(counts, data):
    n, c = counts
    k = data.draw(st.integers(1, n))
    right = [True] * c + [False] * (n - c)
    choices = list(itertools.combinations(right, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_k_is_unbiased_where_the_plain_estimate_is_not():
    """The average over draws of n answers is the true probability, for every k."""
    n, k, p = 5, 3, 0.3
    chance = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    expected = sum(weight * pass_at_k(n, c, k) for c, weight in enumerate(chance))
    assert expected == pytest.approx(1 - (1 - p) ** k)
    plain = sum(weight * (1 - (1 - c / n) ** k) for c, weight in enumerate(chance))
    assert abs(plain - (1 - (1 - p) ** k)) > 0.01


def test_pass_at_k_is_exact_for_many_answers():
    assert pass_at_k(10_000, 1, 100) == pytest.approx(0.01)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_of_impossible_numbers(n, c, k):
    with pytest.raises(ValueError, match="answers"):
        pass_at_k(n, c, k)


@given(REWARDS, REWARDS)
def test_win_share_by_counting_pairs(ours, theirs):
    won = [1.0 if a > b else 0.5 if a == b else 0.0 for a in ours for b in theirs]
    assert win_share(ours, theirs) == pytest.approx(sum(won) / len(won))
    assert win_share(ours, theirs) + win_share(theirs, ours) == pytest.approx(1)


def test_win_share_of_nothing():
    with pytest.raises(ValueError, match="answers of both"):
        win_share([], [1.0])


def test_many_answers_take_no_longer_each():
    """Counted pair by pair, or with a look at all counts for each text, this takes minutes."""
    started = time.monotonic()
    texts = [range(start, start + 40) for start in range(0, 400_000, 40)]
    assert distinct_share(texts, 2) == 1.0
    rewards = [float(number) for number in range(20_000)]
    assert win_share(rewards, rewards) == 0.5
    assert time.monotonic() - started < 10


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20))
def test_estimate_against_numpy(values):
    found = estimate(values)
    assert found.mean == pytest.approx(np.mean(values))
    expected = np.std(values, ddof=1) / math.sqrt(len(values))
    assert found.standard_error == pytest.approx(expected, abs=1e-9)
    assert found.count == len(values)


def test_estimate_of_too_little():
    assert math.isnan(estimate([]).mean)
    assert estimate([2.0]).mean == 2.0
    assert math.isnan(estimate([2.0]).standard_error)


@pytest.mark.parametrize("num_resamples", [0, 2000])
def test_the_interval_of_a_win_rate_is_about_the_normal_one(num_resamples):
    shares = [1.0] * 60 + [0.5] * 20 + [0.0] * 20
    found = win_rate(shares, confidence=0.95, num_resamples=num_resamples, seed=1)
    error = np.std(shares, ddof=1) / 10
    assert found.mean == pytest.approx(0.7)
    assert found.low == pytest.approx(0.7 - 1.96 * error, abs=0.015)
    assert found.high == pytest.approx(0.7 + 1.96 * error, abs=0.015)
    assert found.count == 100


@pytest.mark.parametrize("num_resamples", [0, 400])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(num_resamples):
    generator = np.random.default_rng(0)
    num_held, num_trials = 0, 150
    for trial in range(num_trials):
        shares = generator.choice([0.0, 0.5, 1.0], p=[0.3, 0.2, 0.5], size=60).tolist()
        found = win_rate(shares, confidence=0.9, num_resamples=num_resamples, seed=trial)
        num_held += found.low <= 0.6 <= found.high
    assert 0.8 < num_held / num_trials < 0.97


def test_a_win_rate_is_reproducible_and_of_one_prompt_has_no_interval():
    shares = [0.0, 1.0, 1.0, 0.5]
    settings = {"confidence": 0.9, "num_resamples": 50, "seed": 3}
    assert win_rate(shares, **settings) == win_rate(shares, **settings)
    assert math.isnan(win_rate([1.0], **settings).low)
    assert win_rate([1.0], **settings).mean == 1.0


@given(TOKENS, st.integers(1, 4))
def test_repetition_by_looking_back(tokens, n):
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    if not grams:
        assert repeated_share(tokens, n) is None
        return
    seen_before = [gram in grams[:i] for i, gram in enumerate(grams)]
    assert repeated_share(tokens, n) == pytest.approx(sum(seen_before) / len(grams))


@given(st.lists(TOKENS, max_size=4), st.integers(1, 3))
def test_distinct_by_a_set(texts, n):
    grams = [tuple(t[i : i + n]) for t in texts for i in range(len(t) - n + 1)]
    expected = len(set(grams)) / len(grams) if grams else None
    assert distinct_share(texts, n) == (None if expected is None else pytest.approx(expected))


def test_perplexity():
    # Four tokens of probability 1/8 each.
    assert perplexity(4 * math.log(8), 4) == pytest.approx(8)
    assert perplexity(1e9, 1) == math.inf
    assert math.isnan(perplexity(0.0, 0))
