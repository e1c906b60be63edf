"""Rewards of steps: from characters of the text to tokens."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.records import FailureKind, RolloutGroup, SampleFailure
from rlhf_ray.rewards import StepRewards
from rlhf_ray.rewards.merge import drop_failed, merge_parts, with_rewards
from rlhf_ray.rewards.steps import last_tokens
from tests.unit.rewards.conftest import build_group, unscored_steps
from tests.unit.rewards.conftest import build_step_group as step_group


def steps(**rewards_at: float) -> StepRewards:
    """`steps(_2=0.5)`: a step of 0.5 that ends after two characters."""
    ends = tuple(int(name[1:]) for name in rewards_at)
    return StepRewards(rewards=tuple(rewards_at.values()), ends=ends)


def found(group: RolloutGroup) -> list[list[tuple[int, float]]]:
    """(position in the sample, reward) of every step."""
    lengths = group.lengths.tolist()
    pairs = zip(group.steps.ends.split(lengths), group.steps.rewards.split(lengths), strict=True)
    return [[(p, float(r[p])) for p in range(len(e)) if e[p]] for e, r in pairs]


def test_by_hand():
    text_ends = [1, 1, 3, 6, 6]
    # Inside the third token; exactly its end; inside the fourth; with the text.
    assert last_tokens(text_ends, [1, 2, 3, 4, 6], 6) == [0, 2, 2, 3, 4]
    # A text that no token is known to complete.
    assert last_tokens([1, 1], [1, 2], 3) == [0, 1]
    assert last_tokens([0], [0], 0) == [0]


@given(
    tokens=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    places=st.sets(st.integers(1, 48), max_size=6),
)
def test_a_step_ends_with_the_first_token_that_completes_it(tokens, places):
    """Tokens as numbers of characters, 0 for a part of a character or a special token."""
    text_ends = list(accumulate(tokens))
    length = text_ends[-1]
    ends = sorted(end for end in places if end <= length)
    result = last_tokens(text_ends, ends, length)
    assert result == sorted(result)
    for end, token in zip(ends, result, strict=True):
        assert text_ends[token] >= end
        if end < length:
            assert token == 0 or text_ends[token - 1] < end
        else:
            assert token == len(tokens) - 1


def test_rewards_go_to_the_last_tokens_of_steps_and_to_no_others():
    group = with_rewards(
        step_group("abcd", "ef"),
        {"x": [steps(_1=0.5, _4=1.0), steps(_1=-1.0)]},
        {"x": 2.0},
    )
    # Two prompt tokens; the last step has the token behind the text too.
    assert found(group) == [[(2, 1.0), (6, 2.0)], [(2, -2.0)]]
    assert group.rewards.tolist() == [3.0, -2.0]
    assert group.reward_parts["x"].tolist() == [1.5, -1.0]
    assert group.steps.rewards.dtype == torch.float64
    assert group.steps.rewards[~group.steps.ends].abs().sum() == 0


def test_functions_are_added_with_their_weights_and_a_number_is_a_step_at_the_end():
    group = with_rewards(
        step_group("abcd"),
        {"x": [steps(_1=1.0, _4=2.0)], "y": [3.0], "z": [steps(_1=1.0, _2=5.0)]},
        {"x": 1.0, "y": 10.0, "z": -1.0},
    )
    assert found(group) == [[(2, 0.0), (3, -5.0), (6, 32.0)]]
    assert group.rewards.tolist() == [1 + 2 + 30 - 6]
    summary = group.summary()
    assert summary.step_rewards == ((0.0, -5.0, 32.0),)
    assert summary.compared == (0.0, -5.0, 32.0)
    assert float(group.steps.rewards.sum()) == group.rewards.tolist()[0]


def test_a_function_of_weight_0_makes_no_steps():
    answers = {"x": [steps(_2=1.0)], "watched": [steps(_1=7.0, _3=7.0)]}
    scored = with_rewards(step_group("abcd"), answers, {"x": 1.0, "watched": 0.0})
    assert found(scored) == [[(3, 1.0)]]
    assert scored.reward_parts["watched"].tolist() == [14.0]


def test_steps_that_end_with_one_token_are_one_step():
    group = replace(step_group("abcd"), steps=unscored_steps([0, 0, 3, 3, 3, 4, 4]))
    scored = with_rewards(group, {"x": [steps(_1=1.0, _2=2.0, _4=4.0)]}, {"x": 1.0})
    assert found(scored) == [[(2, 3.0), (6, 4.0)]]


def test_a_run_that_does_not_train_on_steps_has_the_sum_alone():
    group = with_rewards(build_group("abcd"), {"x": [steps(_1=0.5, _4=1.0)]}, {"x": 2.0})
    assert group.rewards.tolist() == [3.0]
    assert group.steps is None
    assert group.summary().step_rewards == ()
    assert group.summary().compared == (3.0,)


def test_a_sample_without_a_sampled_token_has_no_step():
    group = step_group("a")
    group = replace(group, loss_mask=torch.zeros_like(group.loss_mask))
    scored = with_rewards(group, {"x": [1.0]}, {"x": 1.0})
    assert found(scored) == [[]]
    assert scored.rewards.tolist() == [1.0]


def test_unsampled_tokens_inside_an_answer_get_no_step():
    group = step_group("abc")
    mask = torch.tensor([False, False, True, False, True, True])
    group = replace(group, loss_mask=mask, steps=unscored_steps([0, 0, 1, 0, 3, 3]))
    scored = with_rewards(group, {"x": [steps(_1=1.0, _2=2.0)]}, {"x": 1.0})
    assert found(scored) == [[(2, 1.0), (4, 2.0)]]


def test_parts_are_merged_and_failed_samples_leave_with_their_steps():
    whole = step_group("a", "bb", "ccc")
    empty = drop_failed(step_group("a"), [failure(0)])
    parts = (empty, step_group("ccc", indices=(2,)), step_group("bb", "a", indices=(1, 0)))
    merged = merge_parts(*parts)
    assert merged.steps.text_ends.tolist() == whole.steps.text_ends.tolist()
    assert merged.steps.text_ends.dtype == torch.int32
    answers = [steps(_1=1.0), steps(_1=2.0, _2=3.0), steps(_3=4.0)]
    scored = with_rewards(merged, {"x": answers}, {"x": 1.0})
    dropped = drop_failed(scored, [failure(1)])
    assert found(dropped) == [found(scored)[0], found(scored)[2]]
    assert dropped.summary().step_rewards == ((1.0,), (4.0,))
    assert found(drop_failed(scored, [failure(i) for i in range(3)])) == []


def test_fields_of_steps_that_do_not_fit_are_refused():
    group = step_group("abc")
    for name in ("text_ends", "rewards", "ends"):
        steps = replace(group.steps, **{name: getattr(group.steps, name)[:2]})
        with pytest.raises(ValueError, match=rf"steps\.{name} has shape \(2,\)"):
            replace(group, steps=steps)


def failure(index: int) -> SampleFailure:
    return SampleFailure(
        prompt_id="e0-r1", sample_index=index, kind=FailureKind.GENERATION_ERROR, message="lost"
    )
