"""Reward for a response that matches a pattern."""

from __future__ import annotations

from rlhf_ray.rewards.builtin.pattern import compile_pattern
from rlhf_ray.rewards.protocol import RewardSample

MEASURES = ("match", "full", "fraction")


class RegularExpression:
    """Match of the response with a regular expression of Python's `re`: 0.0 to 1.0.

    A pattern that backtracks without end is stopped by `reward.timeout_s`, as any
    other function is.

    Args:
        pattern: the regular expression.
        measure: "match": 1.0 if it is found anywhere; "full": 1.0 if it covers the whole
            response, apart from white space at the ends; "fraction": the share of the response's
            characters that lie in matches, 0.0 for an empty response.
        ignore_case: upper and lower case are the same.
    """

    def __init__(self, *, pattern: str, measure: str = "match", ignore_case: bool = False) -> None:
        if measure not in MEASURES:
            raise ValueError(f"measure is {measure!r}; it must be one of {', '.join(MEASURES)}")
        self._measure = measure
        self._pattern = compile_pattern(pattern, ignore_case=ignore_case)

    def __call__(self, sample: RewardSample) -> float:
        if self._measure == "match":
            return float(self._pattern.search(sample.response) is not None)
        if self._measure == "full":
            return float(self._pattern.fullmatch(sample.response.strip()) is not None)
        if not sample.response:
            return 0.0
        covered = sum(len(match.group()) for match in self._pattern.finditer(sample.response))
        return covered / len(sample.response)
