"""Reward for every line of a response that matches a pattern."""

from __future__ import annotations

from rlhf_ray.rewards.builtin.pattern import compile_pattern
from rlhf_ray.rewards.protocol import RewardSample, StepRewards

MEASURES = ("match", "full")
SCALES = ("line", "response")


class Lines:
    """A step for every line: 1.0 if it matches a regular expression of Python's `re`; else 0.0.

    A blank line is not a step: it belongs to the line before it, and blank lines at the start to
    the first line that is not blank. A response of blank lines only is one step of 0.0.

    Args:
        pattern: the regular expression.
        measure: "match": it is found anywhere in the line; "full": it covers the whole line,
            apart from white space at the ends.
        ignore_case: upper and lower case are the same.
        scale: "line": 1.0 per line, for algorithm=process; "response": 1 / number of lines, so that
            the sum is the share of matching lines, for algorithms that use the sum.
    """

    def __init__(
        self,
        *,
        pattern: str,
        measure: str = "match",
        ignore_case: bool = False,
        scale: str = "line",
    ) -> None:
        if measure not in MEASURES:
            raise ValueError(f"measure is {measure!r}; it must be one of {', '.join(MEASURES)}")
        if scale not in SCALES:
            raise ValueError(f"scale is {scale!r}; it must be one of {', '.join(SCALES)}")
        self._is_full = measure == "full"
        self._is_shared = scale == "response"
        self._pattern = compile_pattern(pattern, ignore_case=ignore_case)

    def __call__(self, sample: RewardSample) -> StepRewards:
        rewards: list[float] = []
        ends: list[int] = []
        place = 0
        for line in sample.response.split("\n"):
            place += len(line) + 1
            if line.strip():
                rewards.append(float(self._follows(line.strip())))
                ends.append(place)
            elif ends:
                ends[-1] = place
        # The last line has no line break after it.
        ends = [*ends[:-1], len(sample.response)]
        share = len(rewards) if self._is_shared else 1
        return StepRewards(
            rewards=tuple(reward / share for reward in rewards) or (0.0,), ends=tuple(ends)
        )

    def _follows(self, line: str) -> bool:
        found = self._pattern.fullmatch(line) if self._is_full else self._pattern.search(line)
        return found is not None
