"""Reward for a response whose last number is the answer."""

from __future__ import annotations

import math
from fractions import Fraction

from rlhf_ray.rewards.numerals import last_number
from rlhf_ray.rewards.protocol import RewardSample, reference_answer


class Arithmetic:
    """1.0 if the last number of the response equals the reference answer; else 0.0.

    A number is read whole or not at all: with sign, currency, decimals, thousands, exponent, as a
    fraction, or with a word of its size ("-$1,234.50", "1e5", "3/4", "\\frac12", "0,5",
    "1.5 million"). A response whose last number has no certain reading ("12:30", "10^5",
    "\\sqrt{16}", "2\\pi", "3x", "5k") gets 0.0. Numbers are compared exactly, so "7.0" equals "7",
    and 0.1 is exact. Units and the percent sign are not compared.

    Args:
        tolerance: largest difference that still counts as equal.
    """

    def __init__(self, *, tolerance: float = 0.0) -> None:
        is_number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
        if not is_number or not math.isfinite(tolerance) or tolerance < 0:
            raise ValueError(f"tolerance is {tolerance!r}; it must be a number, at least 0")
        self._tolerance = Fraction(str(tolerance))

    def __call__(self, sample: RewardSample) -> float:
        answer = last_number(reference_answer(sample))
        if answer is None:
            raise ValueError(
                f"the reference answer {sample.answer!r} of prompt {sample.prompt_id} holds no "
                "number that can be read; point data.answer_column to a column of numbers"
            )
        found = last_number(sample.response)
        if found is None:
            return 0.0
        return float(abs(found - answer) <= self._tolerance)
