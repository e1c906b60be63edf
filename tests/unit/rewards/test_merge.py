"""Merge of a group's parts, and removal of samples, token by token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlhf_ray.records import FailureKind, RolloutGroup, SampleFailure
from rlhf_ray.rewards.merge import drop_failed, merge_parts, with_rewards


def failure(index: int) -> SampleFailure:
    return SampleFailure(
        prompt_id="e0-r1", sample_index=index, kind=FailureKind.GENERATION_ERROR, message="lost"
    )


def assert_same(left: RolloutGroup, right: RolloutGroup) -> None:
    for name in (
        "token_ids",
        "lengths",
        "loss_mask",
        "generator_logprobs",
        "support_token_ids",
        "weight_versions",
    ):
        first, second = getattr(left, name), getattr(right, name)
        assert first.dtype == second.dtype, name
        assert torch.equal(first, second), name
    for name in ("sample_indices", "responses", "finish_reasons", "failures", "prompt"):
        assert getattr(left, name) == getattr(right, name), name


def test_parts_are_merged_in_order_of_sample_index(make_group) -> None:
    whole = make_group("", "a", "bb", "ccc", "dddd")
    first = make_group("bb", "", indices=(2, 0))
    second = make_group("dddd", "a", "ccc", indices=(4, 1, 3))
    assert_same(merge_parts(first, second), whole)
    assert_same(merge_parts(second, first), whole)
    assert_same(merge_parts(whole), whole)


def test_failures_are_kept_unless_the_sample_came_in_another_part(make_group) -> None:
    first = replace(make_group("a", indices=(0,)), failures=(failure(1), failure(2)))
    second = make_group("b", indices=(1,))
    assert merge_parts(first, second).failures == (failure(2),)


def test_parts_that_do_not_belong_together_are_refused(make_group) -> None:
    group = make_group("a")
    with pytest.raises(ValueError, match="at least one part"):
        merge_parts()
    with pytest.raises(ValueError, match="parts of different prompts"):
        merge_parts(group, make_group("b", indices=(1,), prompt_id="e0-r2"))
    with pytest.raises(ValueError, match=r"a sample more than once: \(0, 0\)"):
        merge_parts(group, make_group("b"))
    with pytest.raises(ValueError, match="have rewards already"):
        merge_parts(with_rewards(group, {"x": [1.0]}, {"x": 1.0}))


def test_failed_samples_leave_every_tensor(make_group) -> None:
    group = make_group("a", "bb", "ccc")
    expected = replace(make_group("a", "ccc", indices=(0, 2)), failures=(failure(1),))
    assert_same(drop_failed(group, [failure(1)]), expected)
    assert drop_failed(group, []) is group


def test_failed_samples_leave_the_rewards_of_a_scored_group(make_group) -> None:
    group = with_rewards(make_group("a", "b"), {"x": [1.0, 2.0]}, {"x": 10.0})
    dropped = drop_failed(group, [failure(0)])
    assert dropped.rewards.tolist() == [20.0]
    assert dropped.reward_parts["x"].tolist() == [2.0]


def test_a_group_may_lose_all_samples(make_group) -> None:
    empty = drop_failed(make_group("a", "b"), [failure(0), failure(1)])
    assert (empty.num_samples, empty.token_ids.shape[0]) == (0, 0)
    assert_same(merge_parts(empty), empty)
    assert merge_parts(empty, make_group("a")).failures == (failure(1),)


def test_rewards_are_weighted_sums_in_float64(make_group) -> None:
    group = with_rewards(
        make_group("a", "b"), {"x": [0.1, 1.0], "y": [1.0, -1.0]}, {"x": 2.0, "y": 0.5}
    )
    assert group.rewards.dtype == torch.float64
    assert group.rewards.tolist() == pytest.approx([0.7, 1.5], abs=1e-15)
    assert group.reward_parts["x"].tolist() == [0.1, 1.0]
