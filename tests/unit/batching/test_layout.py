"""Ragged samples laid out in padded rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.batching.layout import MicroBatch, lay_out

T, F = True, False


def ragged(*masks: list[bool]):
    """Token i of the whole has id 100 + i."""
    lengths = torch.tensor([len(mask) for mask in masks])
    mask = torch.tensor([keep for row in masks for keep in row])
    return 100 + torch.arange(mask.shape[0]), lengths, mask, None


def fields(batch: MicroBatch) -> tuple[list, list, list, list, int]:
    return (
        batch.input_ids.tolist(),
        batch.hidden_index.tolist(),
        batch.targets.tolist(),
        batch.token_index.tolist(),
        batch.num_targets,
    )


def test_by_hand():
    data = ragged([F, F, T], [F, T, T, T], [F, F])
    # The last token of the longest row is predicted and predicts nothing: the width is 3.
    assert fields(lay_out(*data, [1, 0])) == (
        [[103, 104, 105], [100, 101, 102]],
        [0, 1, 2, 4],
        [104, 105, 106, 102],
        [4, 5, 6, 2],
        4,
    )


def test_no_wider_than_the_last_predicted_token():
    data = ragged([F, T, F, F], [F, F, F])
    assert fields(lay_out(*data, [0, 1])) == ([[100], [104]], [0], [101], [1], 1)


def test_shorter_rows_are_padded_with_zero():
    data = ragged([F, T], [F, F, F, T])
    assert lay_out(*data, [0, 1]).input_ids.tolist() == [[100, 101, 0], [102, 103, 104]]


@pytest.mark.parametrize("rows", [[], [2]])
def test_nothing_predicted_still_runs_the_model(rows):
    data = ragged([F, F, T], [F, T], [F, F])
    assert fields(lay_out(*data, rows)) == ([[0]], [0], [0], [], 0)


def test_no_samples_at_all():
    nothing = torch.zeros(0, dtype=torch.int64)
    batch = lay_out(nothing, nothing, nothing.bool(), None, [])
    assert batch.num_targets == 0
    assert batch.support_token_ids is None


def test_supports_go_with_the_targets():
    token_ids, lengths, mask, _ = ragged([F, F, T], [F, T, T])
    kept = torch.stack([token_ids, -torch.ones_like(token_ids)], dim=1).int()
    batch = lay_out(token_ids, lengths, mask, kept, [1, 0])
    assert batch.targets.tolist() == [104, 105, 102]
    assert batch.support_token_ids.tolist() == [[104, -1], [105, -1], [102, -1]]
    # The meaningless target 0 can be sampled, so that its log-probability is a number.
    assert lay_out(token_ids, lengths, mask, kept, []).support_token_ids.tolist() == [[0, -1]]


def test_a_first_token_cannot_be_predicted():
    with pytest.raises(ValueError, match="the first token of sample 1 is marked as sampled"):
        lay_out(*ragged([F, T], [T, T]), [0, 1])


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_hidden_states_and_targets_belong_together(data):
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    masks = [
        [F, *data.draw(st.lists(st.booleans(), min_size=n - 1, max_size=n - 1))] for n in sizes
    ]
    rows = data.draw(st.lists(st.sampled_from(range(len(sizes))), unique=True))
    batch = lay_out(*ragged(*masks), rows)
    starts = [sum(sizes[:row]) for row in rows]
    expected = [
        start + i
        for start, row in zip(starts, rows, strict=True)
        for i in range(sizes[row])
        if masks[row][i]
    ]
    assert batch.token_index.tolist() == expected
    assert batch.num_targets == len(expected)
    if expected:
        before = batch.input_ids.flatten()[batch.hidden_index]
        # Ids are positions plus 100, so that the token before is one less.
        assert before.tolist() == [100 + index - 1 for index in expected]
        assert batch.targets.tolist() == [100 + index for index in expected]
