"""Rows divided over the ranks that compute them together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.batching.layout_cost import PairCosts
from rlhf_ray.batching.micro_batches import plan_micro_batches
from rlhf_ray.batching.rank_plan import RankPlan, plan_rows, rank_plan
from rlhf_ray.batching.row_layout import RowLayout
from rlhf_ray.batching.sequence_split import SequenceSplit
from rlhf_ray.config.groups.training import RoleConfig


def pieces(size: int, input_ids: torch.Tensor, hidden_index: torch.Tensor):
    splits = [SequenceSplit(size=size, index=index) for index in range(size)]
    return [split.cut(input_ids, hidden_index) for split in splits]


def test_by_hand():
    # Two rows of 5, padded to 6; predictions by columns 0 and 4 of the first and 2 of the second.
    rows = torch.tensor([[10, 11, 12, 13, 14], [20, 21, 22, 23, 24]])
    first, second = pieces(2, rows, torch.tensor([0, 4, 7]))
    assert first.input_ids.tolist() == [[10, 11, 12], [20, 21, 22]]
    assert second.input_ids.tolist() == [[13, 14, 0], [23, 24, 0]]
    assert first.position_ids.tolist() == [[0, 1, 2]] * 2
    assert second.position_ids.tolist() == [[3, 4, 5]] * 2
    assert first.chosen.tolist(), first.hidden_index.tolist() == ([0, 2], [0, 5])
    assert (second.chosen.tolist(), second.hidden_index.tolist()) == ([1], [1])
    assert (first.is_own.tolist(), second.is_own.tolist()) == (
        [True, False, True],
        [False, True, False],
    )


def test_a_rank_without_a_prediction_runs_a_meaningless_one():
    first, second = pieces(2, torch.tensor([[1, 2, 3, 4]]), torch.tensor([3]))
    assert not first.is_own.any()
    assert (first.chosen.tolist(), first.hidden_index.tolist()) == ([0], [0])
    assert second.is_own.all()


@given(data=st.data(), size=st.integers(1, 5), num_rows=st.integers(1, 3), width=st.integers(1, 9))
def test_pieces_are_the_rows_and_every_prediction_is_one_rank_s(data, size, num_rows, width):
    rows = torch.arange(1, num_rows * width + 1).view(num_rows, width)
    places = data.draw(st.lists(st.integers(0, num_rows * width - 1), min_size=1, max_size=6))
    index = torch.tensor(places)
    found = pieces(size, rows, index)
    together = torch.cat([piece.input_ids for piece in found], dim=1)
    assert torch.equal(together[:, :width], rows)
    assert not together[:, width:].any()
    positions = torch.cat([piece.position_ids for piece in found], dim=1)
    assert torch.equal(positions, torch.arange(positions.shape[1]).repeat(num_rows, 1))
    assert torch.equal(
        torch.stack([piece.is_own for piece in found]).sum(0), torch.ones(len(index))
    )
    for piece in found:
        own = piece.is_own.nonzero()[:, 0]
        states = piece.input_ids.flatten()[piece.hidden_index][: own.shape[0]]
        assert torch.equal(states, rows.flatten()[index[own]])


def test_a_micro_batch_counts_what_a_rank_holds():
    # Of 9 and 8 tokens a rank of 4 holds 3 and 2: both fit 6 tokens, a third does not.
    assert plan_micro_batches([9, 8], 1, 6, ranks_per_sample=4) == [[[0, 1]]]
    assert plan_micro_batches([9, 8, 8], 1, 6, ranks_per_sample=4) == [[[1, 2], [0]]]


def test_a_sample_may_be_as_long_as_the_ranks_hold_together():
    assert plan_micro_batches([32_768], 1, 4096, ranks_per_sample=8) == [[[0]]]
    with pytest.raises(ValueError, match=r"32769 tokens, over sequence_parallel_size=8 .* 4097"):
        plan_micro_batches([32_769], 1, 4096, ranks_per_sample=8)


def test_ranks_of_a_group_share_their_samples():
    settings = RoleConfig(
        num_ranks=4, sequence_parallel_size=2, max_tokens_per_micro_batch=3, layout="auto"
    )
    plan = rank_plan(settings)
    expected = RankPlan(num_ranks=2, max_tokens_per_micro_batch=3, sequence_parallel_size=2)
    assert plan == expected
    lengths = torch.tensor([6, 5])
    mask = torch.ones(11, dtype=torch.bool)
    assert plan_rows(torch.arange(11), lengths, mask, [0, 1], plan) == [[[0]], [[1]]]


def test_a_layout_plans_what_a_rank_holds():
    layout = RowLayout(
        setting="padded",
        costs=PairCosts(causal=0.0, masked=0.0),
        max_tokens=3,
        split=SequenceSplit(size=2, index=1),
    )
    mask = torch.tensor([False, True, True, True, True, True] * 2)
    assert layout.plan(torch.arange(12), torch.tensor([6, 6]), mask) == [[0], [1]]
