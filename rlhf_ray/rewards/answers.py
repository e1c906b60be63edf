"""Return values of reward functions: checks, and their form as messages between the processes.

Imported by the process that runs the functions, so nothing here may import torch. A message is
plain JSON: {"value": 1.5}, {"rewards": [...], "ends": [...]} or {"failed": ..., "message": ...}.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

from rlhf_ray.data.scalars import python_value
from rlhf_ray.rewards.protocol import StepRewards

Answer = float | StepRewards

_MAX_SHOWN_CHARACTERS = 200
_FLOAT32_MAX = 3.4028234663852886e38


class BadAnswer(ValueError):  # noqa: N818 - it reads as a sentence
    """The return value of a function is not a reward.

    Attributes:
        kind: "error", or "not_finite" for NaN and infinities.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def to_message(returned: Any, response: str) -> dict[str, Any]:
    """Check a function's return value; gives the message with the reward, or with the error."""
    try:
        if isinstance(returned, StepRewards):
            return _steps(returned, response)
        return {"value": _value(returned)}
    except BadAnswer as error:
        return {"failed": error.kind, "message": str(error)}


def from_message(message: dict[str, Any]) -> Answer:
    """The reward in a message that has no failure."""
    if "value" in message:
        return message["value"]
    return StepRewards(rewards=tuple(message["rewards"]), ends=tuple(message["ends"]))


def step_values(answer: Answer) -> tuple[float, ...]:
    """The rewards of the steps; a plain number is one step."""
    return answer.rewards if isinstance(answer, StepRewards) else (answer,)


def outcome(answer: Answer) -> float:
    """Reward of the whole response: the sum over its steps."""
    return sum(step_values(answer))


def fits_float32(reward: float) -> bool:
    """Whether a reward stays finite in float32, the format of advantages and returns."""
    return abs(reward) <= _FLOAT32_MAX


def _value(returned: Any) -> float:
    # Single values of numpy and torch are numbers, arrays and texts are not, although float() takes
    # some of both.
    returned = python_value(returned)
    if not isinstance(returned, numbers.Real):
        kind = type(returned).__name__
        raise BadAnswer("error", f"it returned {_shown(returned)} ({kind}), not a number")
    number = _number(returned)
    if not math.isfinite(number):
        raise BadAnswer("not_finite", f"it returned {number}, not a finite number")
    return number


def _steps(returned: StepRewards, response: str) -> dict[str, Any]:
    rewards, ends = _listed("rewards", returned.rewards), _listed("ends", returned.ends)
    if not rewards or len(rewards) != len(ends):
        raise BadAnswer(
            "error",
            f"it returned StepRewards with {len(rewards)} rewards and {len(ends)} ends; there must "
            "be one of each for every step, and at least one step",
        )
    values = [_step_value(place, reward) for place, reward in enumerate(rewards)]
    if not math.isfinite(sum(values)):
        raise BadAnswer("not_finite", f"the sum of its StepRewards is {sum(values)}")
    return {"rewards": values, "ends": _checked_ends(ends, len(response))}


def _step_value(place: int, reward: Any) -> float:
    try:
        return _value(reward)
    except BadAnswer as error:
        raise BadAnswer(error.kind, f"StepRewards.rewards[{place}]: {error}") from error


def _checked_ends(ends: list[Any], num_characters: int) -> list[int]:
    ends = [python_value(end) for end in ends]
    for place, end in enumerate(ends):
        if not isinstance(end, numbers.Integral) or isinstance(end, bool):
            raise BadAnswer(
                "error",
                f"StepRewards.ends[{place}] is {_shown(end)}, not a whole number of characters",
            )
        # The one step of an empty response ends at 0.
        lowest = int(ends[place - 1]) + 1 if place else min(1, num_characters)
        if not lowest <= int(end) <= num_characters:
            raise BadAnswer(
                "error",
                f"StepRewards.ends[{place}] is {end}; ends rise strictly, from at least 1 to at "
                f"most the length of the response, which is {num_characters} here: {_shown(ends)}",
            )
    return [int(end) for end in ends]


def _listed(name: str, items: Any) -> list[Any]:
    try:
        return list(items)
    except TypeError:
        raise BadAnswer(
            "error", f"StepRewards.{name} is {_shown(items)}; it must have one entry for each step"
        ) from None


def _number(returned: Any) -> float:
    try:
        return float(returned)
    except OverflowError:
        return math.inf


def _shown(value: Any) -> str:
    return repr(value)[:_MAX_SHOWN_CHARACTERS]
