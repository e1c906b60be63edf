"""Where the outcome and the KL penalty enter, per token and per sample."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms.ragged import (
    count_by_segment,
    last_masked_tokens,
    spread_over_tokens,
    sum_by_segment,
)
from rlhf_ray.algorithms.rewards.token_rewards import (
    clip_rewards,
    sample_rewards,
    step_token_rewards,
    token_rewards,
)
from tests.unit.algorithms import ground_truth

F64 = torch.float64
# A prompt token, two sampled ones and a tool's; then a sample without a sampled token; then one
# that is sampled throughout.
LENGTHS = torch.tensor([4, 2, 1])
MASK = torch.tensor([False, True, True, False, False, False, True])
KL = torch.tensor([math.nan, 1.0, 2.0, math.inf, math.nan, 5.0, 4.0], dtype=F64)
OUTCOMES = torch.tensor([7.0, 1.0, -9.0], dtype=F64)


def test_token_rewards_by_hand():
    result = token_rewards(OUTCOMES, KL, LENGTHS, MASK, kl_coefficient=0.5, reward_clip=5.0)
    assert result.tolist() == [0.0, -0.5, 5.0 - 1.0, 0.0, 0.0, 0.0, -5.0 - 2.0]


def test_sample_rewards_by_hand():
    result = sample_rewards(OUTCOMES, KL, LENGTHS, MASK, kl_coefficient=0.5, reward_clip=5.0)
    assert result.tolist() == [5.0 - 1.5, 1.0, -5.0 - 2.0]


def test_clip_is_of_the_outcome_alone():
    rewards = {"kl_coefficient": 10.0, "reward_clip": 5.0}
    assert token_rewards(OUTCOMES, KL, LENGTHS, MASK, **rewards)[6].item() == -45.0
    assert sample_rewards(OUTCOMES, KL, LENGTHS, MASK, **rewards)[2].item() == -45.0


def test_no_clip_and_no_penalty_leave_the_outcome_exact():
    outcomes = torch.tensor([0.85, 0.85, 0.85])
    zero = torch.zeros(7)
    rewards = sample_rewards(outcomes, zero, LENGTHS, MASK, kl_coefficient=0.0, reward_clip=None)
    assert rewards.tolist() == outcomes.double().tolist()
    assert clip_rewards(OUTCOMES, None).tolist() == OUTCOMES.tolist()


@settings(max_examples=60, deadline=None)
@given(
    samples=st.lists(
        st.tuples(
            st.floats(-4, 4), st.lists(st.tuples(st.floats(-2, 2), st.booleans()), max_size=6)
        ),
        min_size=1,
        max_size=4,
    ),
    coefficient=st.sampled_from([0.0, 0.1, 3.0]),
    clip=st.sampled_from([None, 1.5]),
)
def test_equals_ground_truth(samples, coefficient, clip):
    expected_tokens, expected_samples, kls, mask = [], [], [], []
    for outcome, tokens in samples:
        sample_kl, sample_mask = [x for x, _ in tokens], [keep for _, keep in tokens]
        rewards = ground_truth.token_rewards(
            outcome, sample_kl, sample_mask, kl_coefficient=coefficient, clip=clip
        )
        clipped = outcome if clip is None else max(-clip, min(clip, outcome))
        expected_tokens += rewards
        expected_samples.append(math.fsum(rewards) if any(sample_mask) else clipped)
        kls += sample_kl
        mask += sample_mask
    arguments = (
        torch.tensor([outcome for outcome, _ in samples], dtype=F64),
        torch.tensor(kls, dtype=F64),
        torch.tensor([len(tokens) for _, tokens in samples]),
        torch.tensor(mask, dtype=torch.bool),
    )
    settings_ = {"kl_coefficient": coefficient, "reward_clip": clip}
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(
        token_rewards(*arguments, **settings_), torch.tensor(expected_tokens, dtype=F64), **close
    )
    torch.testing.assert_close(
        sample_rewards(*arguments, **settings_), torch.tensor(expected_samples, dtype=F64), **close
    )


def test_ragged_helpers_by_hand():
    assert last_masked_tokens(LENGTHS, MASK).tolist() == [
        False, False, True, False, False, False, True,
    ]  # fmt: skip
    assert sum_by_segment(KL, LENGTHS, MASK).tolist() == [3.0, 0.0, 4.0]
    assert count_by_segment(MASK, LENGTHS).tolist() == [2, 0, 1]
    spread = spread_over_tokens(torch.tensor([1.5, 9.0, -2.0]), LENGTHS, MASK)
    assert spread.tolist() == [0.0, 1.5, 1.5, 0.0, 0.0, 0.0, -2.0]


def test_errors_show_what_came_and_what_is_expected():
    mask = torch.ones(3, dtype=torch.bool)
    with pytest.raises(AssertionError, match=r"kl must be floating point \[3\], not .*int64 \[2\]"):
        token_rewards(
            torch.zeros(1),
            torch.zeros(2, dtype=torch.int64),
            torch.tensor([3]),
            mask,
            kl_coefficient=0.0,
            reward_clip=None,
        )
    with pytest.raises(AssertionError, match=r"mask must be torch.bool \[N\], not .* \[1, 3\]"):
        sum_by_segment(torch.zeros(1, 3), torch.tensor([3]), torch.zeros(1, 3))
    with pytest.raises(AssertionError, match="lengths sums to 4, not to the 3 entries"):
        count_by_segment(mask, torch.tensor([4]))
    with pytest.raises(AssertionError, match=r"lengths must be torch.int64 \[S\], not .*float32"):
        count_by_segment(mask, torch.tensor([3.0]))
    with pytest.raises(AssertionError, match="negative"):
        count_by_segment(mask, torch.tensor([4, -1]))
    with pytest.raises(AssertionError, match=r"outcomes must be floating point \[1\]"):
        token_rewards(
            torch.zeros(2),
            torch.zeros(3),
            torch.tensor([3]),
            mask,
            kl_coefficient=0.0,
            reward_clip=None,
        )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rewards_of_steps_are_on_the_tokens_that_end_them(data):
    """Against a loop over the tokens; what is off the mask or ends no step may be NaN."""
    count = data.draw(st.integers(1, 12))
    flags = st.lists(st.booleans(), min_size=count, max_size=count)
    numbers = st.lists(st.floats(-3, 3), min_size=count, max_size=count)
    mask, ends = data.draw(flags), data.draw(flags)
    rewards, kls = data.draw(numbers), data.draw(numbers)
    found = step_token_rewards(
        torch.tensor(
            [r if e and m else math.nan for r, e, m in zip(rewards, ends, mask, strict=True)],
            dtype=F64,
        ),
        torch.tensor(ends),
        torch.tensor([k if m else math.nan for k, m in zip(kls, mask, strict=True)], dtype=F64),
        torch.tensor(mask),
        kl_coefficient=0.25,
    )
    expected = []
    for token in range(count):
        reward = rewards[token] if ends[token] else 0.0
        expected.append(reward - 0.25 * kls[token] if mask[token] else 0.0)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64))
