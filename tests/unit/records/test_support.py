"""Support of the sampling distribution: joined, checked, saved and batched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlhf_ray.records.files import load_records, save_records
from rlhf_ray.records.support import join_supports
from tests.unit.training.builders import build, make_group, only

T, F = True, False


def test_parts_are_filled_up_to_the_widest():
    parts = [torch.tensor([[4, 5], [6, -1]]), torch.tensor([[7]]), torch.zeros(2, 0)]
    joined = join_supports([part.int() for part in parts], [2, 1, 2])
    assert joined is not None
    assert joined.tolist() == [[4, 5], [6, -1], [7, -1], [-1, -1], [-1, -1]]
    assert joined.dtype == torch.int32


def test_tokens_without_a_support_get_empty_rows_next_to_tokens_with_one():
    joined = join_supports([None, torch.tensor([[7, 8]]).int()], [2, 1])
    assert joined is not None
    assert joined.tolist() == [[-1, -1], [-1, -1], [7, 8]]
    assert joined.dtype == torch.int32


def test_the_whole_vocabulary_has_no_support():
    assert join_supports([None, None], [3, 2]) is None
    assert join_supports([], []) is None


@pytest.mark.parametrize("shape", [(2,), (2, 3), (3,), (3, 2, 1)])
def test_supports_of_another_shape_are_refused(shape):
    group = make_group(0, [[F, T, T]], [1.0])
    with pytest.raises(ValueError, match=r"support_token_ids has shape .* not \(3, K\)"):
        replace(group, support_token_ids=torch.zeros(shape, dtype=torch.int32))


def test_supports_are_saved_with_their_group(tmp_path):
    kept = torch.tensor([[-1, -1], [3, 4], [5, -1]], dtype=torch.int32)
    group = make_group(0, [[F, T, T]], [1.0], support_token_ids=kept)
    experience = only(build([group]))
    save_records([group, experience], tmp_path / "records.pt")
    for record in load_records(tmp_path / "records.pt"):
        assert torch.equal(record.support_token_ids, kept)
        assert record.support_token_ids.dtype == torch.int32


def test_groups_of_different_widths_become_one_experience():
    narrow = torch.tensor([[-1], [3]], dtype=torch.int32)
    wide = torch.tensor([[-1, -1], [4, 5], [-1, -1], [6, -1]], dtype=torch.int32)
    groups = [
        make_group(1, [[F, T], [F, T]], [1.0, 0.0], support_token_ids=wide, token_ids=[1, 4, 1, 6]),
        make_group(0, [[F, T]], [1.0], support_token_ids=narrow, token_ids=[2, 3]),
    ]
    experience = only(build(groups))
    starts = (experience.lengths.cumsum(0) - experience.lengths).tolist()
    rows = {
        int(experience.token_ids[start + 1]): experience.support_token_ids[
            start : start + 2
        ].tolist()
        for start in starts
    }
    nothing = [-1, -1]
    assert rows == {3: [nothing, [3, -1]], 4: [nothing, [4, 5]], 6: [nothing, [6, -1]]}
