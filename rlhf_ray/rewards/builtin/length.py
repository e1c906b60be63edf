"""Reward for the length of a response."""

from __future__ import annotations

from rlhf_ray.rewards.protocol import RewardSample

UNITS = ("characters", "words")


class Length:
    """1.0 at the wanted length, falling linearly to 0.0.

    Args:
        target: the wanted length; the reward falls on both sides of it.
        limit: the longest wanted length; the reward falls only beyond it. Give either target or
            limit.
        slack: distance from target or limit at which the reward reaches 0.0; by default the target
            or limit itself.
        unit: "characters", or "words" between white space.
    """

    def __init__(
        self,
        *,
        target: int | None = None,
        limit: int | None = None,
        slack: int | None = None,
        unit: str = "characters",
    ) -> None:
        if (target is None) == (limit is None):
            raise ValueError(
                f"target is {target!r} and limit is {limit!r}; give exactly one of the two"
            )
        for name, value in (("target", target), ("limit", limit), ("slack", slack)):
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if value is not None and not is_count:
                raise ValueError(f"{name} is {value!r}; it must be a whole number, at least 1")
        if unit not in UNITS:
            raise ValueError(f"unit is {unit!r}; it must be one of {', '.join(UNITS)}")
        wanted = target if target is not None else limit
        assert wanted is not None
        self._wanted = wanted
        self._only_beyond = limit is not None
        self._slack = slack if slack is not None else wanted
        self._unit = unit

    def __call__(self, sample: RewardSample) -> float:
        words = self._unit == "words"
        length = len(sample.response.split()) if words else len(sample.response)
        distance = length - self._wanted
        distance = max(distance, 0) if self._only_beyond else abs(distance)
        return max(0.0, 1.0 - distance / self._slack)
