"""Statistics of answers: means with their error, pass@k, win rates, repetition. Pure functions."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over prompts.

    Attributes:
        mean: NaN without prompts.
        standard_error: standard error of the mean; NaN for fewer than two prompts.
        count: number of prompts.
    """

    mean: float
    standard_error: float
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WinRate:
    """Win rate of one model against another; a tie is half a win.

    Attributes:
        low, high: bounds of the confidence interval; NaN for fewer than two prompts.
        count: number of prompts that both models have answered.
    """

    mean: float
    low: float
    high: float
    count: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error of independent values, one for each prompt.

    Answers to one prompt are not independent. If a prompt has several, pass their mean: the error
    is then that of drawing new prompts (Miller 2024, Adding Error Bars to Evals, arXiv:2411.00640,
    section 2.2).
    """
    count = len(values)
    if count == 0:
        return Estimate(mean=math.nan, standard_error=math.nan, count=0)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean=mean, standard_error=math.nan, count=1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Estimate(mean=mean, standard_error=math.sqrt(variance / count), count=count)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of k answers is right.

    It is computed from n answers, c of which are right:

        1 - C(n - c, k) / C(n, k)

    Chen et al. 2021, Evaluating Large Language Models Trained on Code, arXiv:2107.03374, eq. 1.

    Raises:
        ValueError: k is not in 1 to n, or c not in 0 to n.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k is {k}: of {num_samples} answers it can be 1 to {num_samples}")
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"{num_correct} of {num_samples} answers cannot be right")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def win_share(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Share of the pairs of answers to one prompt in which ours has the higher reward.

    A tie counts as half.

    Raises:
        ValueError: one of the models has no answers.
    """
    if not ours or not theirs:
        raise ValueError("a win rate needs answers of both models")
    # Each pair by itself would take hours for thousands of answers.
    ranked = sorted(theirs)
    won = sum(0.5 * (bisect_left(ranked, a) + bisect_right(ranked, a)) for a in ours)
    return won / (len(ours) * len(theirs))


def win_rate(
    shares: Sequence[float], *, confidence: float, num_resamples: int, seed: int
) -> WinRate:
    """Mean win share over prompts, with a percentile interval of the bootstrap over prompts.

    Both models' answers to a prompt are resampled together, so the interval is paired (Efron and
    Tibshirani 1993, An Introduction to the Bootstrap, chapter 13).

    Args:
        shares: win share of every prompt; see `win_share`.
        confidence: level of the interval, such as 0.95.
        num_resamples: number of bootstrap resamples; 0 assumes a normal distribution of the mean.
        seed: seed of the resampling.
    """
    found = estimate(shares)
    if found.count < 2:
        return WinRate(mean=found.mean, low=math.nan, high=math.nan, count=found.count)
    if num_resamples == 0:
        reach = NormalDist().inv_cdf(0.5 + confidence / 2) * found.standard_error
        low, high = max(0.0, found.mean - reach), min(1.0, found.mean + reach)
        return WinRate(mean=found.mean, low=low, high=high, count=found.count)
    generator = np.random.default_rng(seed)
    values = np.asarray(shares, dtype=np.float64)
    # One resample at a time: all at once would take resamples x prompts of memory.
    means = [float(generator.choice(values, size=found.count).mean()) for _ in range(num_resamples)]
    edge = (1 - confidence) / 2
    low, high = (float(bound) for bound in np.quantile(means, [edge, 1 - edge]))
    return WinRate(mean=found.mean, low=low, high=high, count=found.count)


def repeated_share(tokens: Sequence[int], n: int) -> float | None:
    """Share of a text's n-grams that repeat an earlier one; None if the text has no n-grams.

    seq-rep-n of Welleck et al. 2019, Neural Text Generation with Unlikelihood Training,
    arXiv:1908.04319: 1 - distinct n-grams / n-grams.
    """
    total = len(tokens) - n + 1
    if total < 1:
        return None
    return 1.0 - len(_ngrams(tokens, n)) / total


def distinct_share(texts: Sequence[Sequence[int]], n: int) -> float | None:
    """Distinct n-grams of all texts divided by all their n-grams; None if there are none.

    distinct-n of Li et al. 2016, A Diversity-Promoting Objective Function, arXiv:1510.03055.
    """
    counts: Counter[tuple[int, ...]] = Counter()
    for tokens in texts:
        counts.update(_ngrams(tokens, n))  # `+=` would look at all counts again for each text.
    return len(counts) / counts.total() if counts else None


def perplexity(total_nats: float, num_tokens: int) -> float:
    """exp of the mean negative log-probability; infinite on overflow, NaN without tokens."""
    if num_tokens == 0:
        return math.nan
    try:
        return math.exp(total_nats / num_tokens)
    except OverflowError:
        return math.inf


def _ngrams(tokens: Sequence[int], n: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
