"""Reward for a response whose last number is the answer."""

from __future__ import annotations

import math
import re
from decimal import Decimal

from rlhf_ray.rewards.protocol import RewardSample, reference_answer

# A sign belongs to the number, unless a number, word or bracket precedes it: "12-5" ends in 5,
# "= -5" in -5. Commas count only between groups of three digits.
_NUMBER = re.compile(
    r"(?P<sign>(?<![0-9A-Za-z_.)\]])[-+\u2212])?"
    r"(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
)


class Arithmetic:
    """1.0 if the last number of the response equals the reference answer; else 0.0.

    Numbers have an optional sign, decimals and commas between thousands ("-1,234.50").
    They are compared as decimals, so "7.0" equals "7" and 0.1 is exact.

    Args:
        tolerance: largest difference that still counts as equal.
    """

    def __init__(self, *, tolerance: float = 0.0) -> None:
        is_number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
        if not is_number or not math.isfinite(tolerance) or tolerance < 0:
            raise ValueError(f"tolerance is {tolerance!r}; it must be a number, at least 0")
        self._tolerance = Decimal(str(tolerance))

    def __call__(self, sample: RewardSample) -> float:
        answer = last_number(reference_answer(sample))
        if answer is None:
            raise ValueError(
                f"the reference answer {sample.answer!r} of prompt {sample.prompt_id} holds no "
                "number; point data.answer_column to a column of numbers"
            )
        found = last_number(sample.response)
        if found is None:
            return 0.0
        # Equality first: a difference is rounded to Decimal's 28 digits, and could round to 0.
        return float(found == answer or abs(found - answer) <= self._tolerance > 0)


def last_number(text: str) -> Decimal | None:
    """The last number in a text, or None if there is none."""
    found = list(_NUMBER.finditer(text))
    if not found:
        return None
    last = found[-1]
    value = Decimal(last["digits"].replace(",", ""))
    return -value if last["sign"] in ("-", "\u2212") else value
