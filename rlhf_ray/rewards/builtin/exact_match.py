"""Reward for a response that is exactly the reference answer."""

from __future__ import annotations

from rlhf_ray.rewards.protocol import RewardSample, reference_answer


class ExactMatch:
    """1.0 if the response equals the answer, apart from white space at the ends; else 0.0.

    Args:
        ignore_case: treat "Paris" and "paris" as equal.
    """

    def __init__(self, *, ignore_case: bool = False) -> None:
        if not isinstance(ignore_case, bool):
            raise ValueError(f"ignore_case is {ignore_case!r}; it must be true or false")
        self._ignore_case = ignore_case

    def __call__(self, sample: RewardSample) -> float:
        response, answer = sample.response.strip(), reference_answer(sample).strip()
        if self._ignore_case:
            response, answer = response.casefold(), answer.casefold()
        return float(response == answer)
