"""Over-long punishment and filtering, and weights of tasks, against the papers' formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms.rewards.overlong import overlong_penalties, without_truncated
from rlhf_ray.algorithms.rewards.task_weights import weigh_advantages

F64 = torch.float64
LENGTHS = torch.tensor([3, 2, 1])
MASK = torch.tensor([False, True, True, False, True, True])


def dapo_reward(length: int, longest: int, cache: int) -> float:
    """Equation 13 of arXiv:2503.14476, with its three cases and its sign."""
    if length <= longest - cache:
        return 0.0
    if length <= longest:
        return ((longest - cache) - length) / cache
    return -1.0


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), max_size=8),
    longest=st.integers(1, 50),
    share=st.floats(0, 1),
    penalty=st.floats(0.1, 5),
)
def test_penalties_are_the_papers(lengths, longest, share, penalty):
    buffer = max(1, int(share * longest))
    found = overlong_penalties(
        torch.tensor(lengths, dtype=torch.int64),
        max_tokens=longest,
        buffer_tokens=buffer,
        penalty=penalty,
    )
    assert found.dtype == F64
    expected = [-penalty * dapo_reward(length, longest, buffer) for length in lengths]
    assert found.tolist() == pytest.approx(expected)


def test_penalties_by_hand():
    found = overlong_penalties(
        torch.tensor([0, 6, 7, 8, 9, 10]), max_tokens=10, buffer_tokens=4, penalty=2.0
    )
    assert found.tolist() == [0.0, 0.0, 0.5, 1.0, 1.5, 2.0]


def test_no_buffer_no_penalty():
    lengths = torch.tensor([9, 10])
    off = overlong_penalties(lengths, max_tokens=10, buffer_tokens=0, penalty=2.0)
    assert off.tolist() == [0.0, 0.0]


def test_truncated_samples_leave_the_mask():
    truncated = torch.tensor([True, False, False])
    assert without_truncated(MASK, LENGTHS, truncated).tolist() == [
        *[False, False, False],
        *[False, True],
        True,
    ]
    nothing = torch.tensor([False, False, False])
    assert without_truncated(MASK, LENGTHS, nothing).tolist() == MASK.tolist()


def test_weights_by_hand():
    advantages = torch.tensor([math.nan, 1.0, -2.0, math.inf, 3.0, 4.0], dtype=F64)
    weights = torch.tensor([2.0, 0.5, 0.0])
    found = weigh_advantages(advantages, weights, LENGTHS, MASK)
    assert found.tolist() == [0.0, 2.0, -4.0, 0.0, 1.5, 0.0]
    assert found.dtype == F64


def test_a_weight_of_nothing_removes_whatever_is_there():
    advantages = torch.full((6,), math.nan)
    assert not weigh_advantages(advantages, torch.zeros(3), LENGTHS, MASK).any()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: without_truncated(MASK, LENGTHS, torch.zeros(3)), "truncated must be torch.bool"),
        (
            lambda: without_truncated(MASK, LENGTHS, torch.zeros(2, dtype=torch.bool)),
            r"\[3\], not torch.bool \[2\]",
        ),
        (
            lambda: weigh_advantages(torch.zeros(6), torch.ones(2), LENGTHS, MASK),
            r"weights must be floating point \[3\]",
        ),
        (
            lambda: overlong_penalties(
                torch.tensor([3]), max_tokens=4, buffer_tokens=5, penalty=1.0
            ),
            "a buffer of 5 of 4 tokens",
        ),
        (
            lambda: overlong_penalties(
                torch.tensor([3.0]), max_tokens=4, buffer_tokens=2, penalty=1.0
            ),
            "response_lengths must be torch.int64",
        ),
    ],
)
def test_wrong_shapes_are_named(call, words):
    with pytest.raises(AssertionError, match=words):
        call()
