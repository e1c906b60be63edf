"""Return values of reward functions: accepted ones, and the messages for others."""

from __future__ import annotations

import json
import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.rewards import StepRewards
from rlhf_ray.rewards.answers import from_message, outcome, step_values, to_message


def steps(rewards: object, ends: object) -> StepRewards:
    """`StepRewards` as a user may construct it: with unchecked types."""
    return StepRewards(rewards=rewards, ends=ends)  # type: ignore[arg-type]


def sent(returned: object, response: str):
    """Convert a return value to a message and back."""
    return from_message(json.loads(json.dumps(to_message(returned, response))))


@pytest.mark.parametrize(
    "returned",
    [
        *(1.5, True, 2, Fraction(1, 4)),
        *(np.float32(0.5), np.float16(2), np.longdouble(3), np.int8(-1), np.uint64(7)),
        *(np.bool_(True), np.isclose(1.0, 2.0), np.array(0.25), np.array(True)),
        *(torch.tensor(0.5), torch.tensor(True), torch.tensor(3), torch.tensor(2.0).bfloat16()),
    ],
)
def test_numbers_pass(returned):
    assert sent(returned, "abc") == float(returned)


@pytest.mark.parametrize(
    ("returned", "response"),
    [
        (steps((1.0,), (1,)), "abc"),
        (steps((0.5, -1.0, 0.25), (1, 2, 3)), "abc"),
        (steps([1, True], [2, 3]), "abc"),
        (steps(np.array([0.5, 1.5]), np.array([1, 3])), "abc"),
        (steps(np.array([True, False]), torch.tensor([1, 3])), "abc"),
        (steps(torch.tensor([0.5, 1.5]), [np.int64(1), torch.tensor(3)]), "abc"),
        # An empty response has one place to end.
        (steps((2.0,), (0,)), ""),
    ],
)
def test_steps_pass_and_are_worth_their_sum(returned, response):
    answer = sent(returned, response)
    assert isinstance(answer, StepRewards)
    assert answer.rewards == tuple(float(reward) for reward in returned.rewards)
    assert answer.ends == tuple(int(end) for end in returned.ends)
    assert outcome(answer) == sum(answer.rewards)
    assert step_values(answer) == answer.rewards


def test_a_number_is_one_step():
    assert step_values(0.25) == (0.25,)
    assert outcome(0.25) == 0.25


@pytest.mark.parametrize(
    ("returned", "kind", "message"),
    [
        (steps((), ()), "error", "0 rewards and 0 ends; .* at least one step"),
        (steps((1.0, 2.0), (1,)), "error", "2 rewards and 1 ends"),
        (steps((1.0, math.nan), (1, 2)), "not_finite", r"rewards\[1\]: it returned nan"),
        (steps((math.inf,), (1,)), "not_finite", r"rewards\[0\]: it returned inf"),
        (steps((10**400,), (1,)), "not_finite", r"rewards\[0\]: it returned inf"),
        (steps((1e308, 1e308), (1, 2)), "not_finite", "the sum of its StepRewards is inf"),
        (steps(("1",), (1,)), "error", r"rewards\[0\]: it returned '1' \(str\), not a number"),
        (steps((1.0,), (1.0,)), "error", r"ends\[0\] is 1.0, not a whole number of characters"),
        (steps((1.0,), (True,)), "error", r"ends\[0\] is True, not a whole number"),
        (steps((1.0, 1.0), (2, 2)), "error", r"ends\[1\] is 2; ends rise strictly"),
        (steps((1.0, 1.0), (2, 1)), "error", r"ends\[1\] is 1; ends rise strictly"),
        (steps((1.0,), (0,)), "error", r"ends\[0\] is 0; .* at least 1"),
        (steps((1.0,), (-1,)), "error", r"ends\[0\] is -1"),
        (steps((1.0, 1.0), (1, 4)), "error", r"ends\[1\] is 4; .*, which is 3 here: \[1, 4\]"),
        (steps(1.0, (1,)), "error", "rewards is 1.0; it must have one entry for each step"),
        (steps((1.0,), 3), "error", "ends is 3; it must have one entry"),
        (steps((1.0,), (np.bool_(True),)), "error", r"ends\[0\] is True, not a whole number"),
        (np.array([1.0]), "error", r"it returned array\(\[1\.\]\) \(ndarray\), not a number"),
        (torch.tensor([1.0]), "error", r"it returned tensor\(\[1\.\]\) \(Tensor\), not a number"),
        (np.str_("1"), "error", r"it returned '1' \(str\), not a number"),
        (np.complex64(1), "error", r"\(complex\), not a number"),
        (np.float32("nan"), "not_finite", "it returned nan"),
        (torch.tensor(float("inf")), "not_finite", "it returned inf"),
        ((1.0, 2.0), "error", r"it returned \(1.0, 2.0\) \(tuple\), not a number"),
    ],
)
def test_anything_else_is_a_failure_that_says_why(returned, kind, message):
    answer = to_message(returned, "abc")
    assert answer["failed"] == kind
    assert re.search(message, answer["message"]), answer["message"]


@given(
    ends=st.lists(st.integers(-1, 12), min_size=1, max_size=5),
    num_characters=st.integers(0, 10),
)
def test_ends_pass_exactly_where_they_cut_the_response_into_steps(ends, num_characters):
    response = "x" * num_characters
    answer = to_message(steps([1.0] * len(ends), ends), response)
    starts = [0, *ends[:-1]]
    are_steps = all(
        0 <= start < end <= num_characters for start, end in zip(starts, ends, strict=True)
    )
    assert ("failed" not in answer) == (are_steps or (ends == [0] and num_characters == 0))
