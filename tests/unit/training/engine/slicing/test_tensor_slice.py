"""Slices of weights: their places in the whole, and who writes them to a checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rlhf_ray.training.engine.shards import weight_shard, whole_shape
from rlhf_ray.training.engine.slicing.tensor_slice import (
    TensorGroup,
    mark_slices,
    name_in_checkpoint,
    slice_of,
)
from rlhf_ray.training.engine.state.state_parts import StatePart, own_share, plain_part

WHOLE = torch.arange(24.0).view(4, 6)


def place(index: int, *, data_index: int = 0) -> TensorGroup:
    """A place among 2 ranks that hold a model, of 3 such groups."""
    no_group: Any = None
    return TensorGroup(
        size=2,
        index=index,
        group=no_group,
        data_group=no_group,
        data_size=3,
        data_index=data_index,
    )


def module_of(values: torch.Tensor, group: TensorGroup) -> nn.Module:
    module = nn.Linear(1, 1, bias=False)
    module.weight.data = values.clone()
    mark_slices(module, group, {"weight": (4, 6)})
    return module


@pytest.mark.parametrize(
    ("dim", "values"), [(0, WHOLE[2:]), (1, WHOLE[:, 3:]), (None, WHOLE)], ids=str
)
def test_a_marked_weight_knows_its_place_in_the_whole(dim, values):
    weight = module_of(values, place(1)).get_parameter("weight")
    part = slice_of(weight)
    assert part is not None
    assert part.dim == dim
    assert whole_shape(weight) == (4, 6)
    assert torch.equal(part.of(WHOLE), values)
    shard = weight_shard(weight)
    assert torch.equal(shard.of(WHOLE), shard.values)
    assert name_in_checkpoint("w", weight) == ("w" if dim is None else "w@1of2")


def test_a_weight_that_is_no_slice():
    weight = nn.Parameter(WHOLE)
    assert slice_of(weight) is None
    assert whole_shape(weight) == (4, 6)
    assert name_in_checkpoint("w", weight) == "w"


def shares(values: torch.Tensor, *, is_shared: bool) -> list[tuple[str, int, int]]:
    """Name, start and length of what each of the 6 ranks writes."""
    found = []
    for data_index in range(3):
        for index in range(2):
            cut = values if values.shape == (4, 6) else values[:, 3 * index : 3 * index + 3]
            weight = module_of(cut, place(index, data_index=data_index)).get_parameter("weight")
            part: StatePart = plain_part("w", weight)
            if not is_shared:
                # ZeRO gives every data-parallel rank four elements.
                part = StatePart(
                    name=part.name,
                    shape=part.shape,
                    start=4 * data_index,
                    values={"weight": part.values["weight"][4 * data_index : 4 * data_index + 4]},
                    part=part.part,
                )
            own = own_share(part)
            found.append((own.name, own.start, own.length))
    return found


def test_data_parallel_ranks_share_the_writing_of_a_slice():
    whole = WHOLE.new_zeros(4, 7)  # Not the whole shape: the cut is a slice.
    whole[:, :6] = WHOLE
    assert shares(whole, is_shared=True) == [
        ("w@0of2", 0, 4),
        ("w@1of2", 0, 4),
        ("w@0of2", 4, 4),
        ("w@1of2", 4, 4),
        ("w@0of2", 8, 4),
        ("w@1of2", 8, 4),
    ]
    assert shares(whole, is_shared=False) == shares(whole, is_shared=True)


def test_ranks_of_a_group_share_the_writing_of_what_both_hold():
    assert shares(WHOLE, is_shared=False) == [
        *(("w", 0, 2), ("w", 2, 2)),
        *(("w", 4, 2), ("w", 6, 2)),
        *(("w", 8, 2), ("w", 10, 2)),
    ]
