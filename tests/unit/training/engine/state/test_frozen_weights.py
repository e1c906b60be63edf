"""Sums over frozen weights: the same however a tensor is cut, another one for other values."""

from __future__ import annotations

import itertools

import pytest
import torch

from rlhf_ray.checkpoint_files.slice_index import NUM_SUMS
from rlhf_ray.training.engine.state import frozen_weights
from rlhf_ray.training.engine.state.frozen_weights import slice_sum

SIZE = 1001
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)


def values(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    numbers = torch.randn(SIZE, generator=torch.Generator().manual_seed(0)) * 100
    return numbers.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [2**20, 7])
@pytest.mark.parametrize("cuts", [(0, SIZE), (0, 1, 500, SIZE), (0, 0, 333, 333, SIZE)])
def test_the_sum_of_slices_is_that_of_the_whole(monkeypatch, dtype, chunk, cuts):
    whole = slice_sum(values(dtype), 0)
    assert 0 <= whole < NUM_SUMS
    monkeypatch.setattr(frozen_weights, "_CHUNK", chunk)
    parts = [slice_sum(values(dtype)[i:k], i) for i, k in itertools.pairwise(cuts)]
    assert sum(parts) % NUM_SUMS == whole


def test_a_known_sum():
    """It is in checkpoints, and must stay: each element is mixed as below."""

    def mixed(bits: int, place: int) -> int:
        value = (bits ^ place * 0x1E3779B97F4A7C15) * 0x3F58476D1CE4E5B9 % NUM_SUMS
        for factor in (0x14D049BB133111EB, 1):
            signed = value - NUM_SUMS if value >= NUM_SUMS // 2 else value
            value = (signed ^ signed >> 29) * factor % NUM_SUMS
        return value

    numbers = torch.tensor([3, -1, 2**40])
    expected = sum(mixed(int(bits), 5 + i) for i, bits in enumerate(numbers)) % NUM_SUMS
    assert slice_sum(numbers, 5) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_values_have_another_sum(dtype):
    start = values(dtype)
    changed = {"as it is": start}
    for place in (0, 17, SIZE - 1):
        one = start.clone()
        bits = one.view(torch.int32 if dtype is torch.float32 else torch.int16)
        bits[place] ^= 1
        changed[f"the last bit of {place}"] = one
    swapped = start.clone()
    swapped[[3, 4]] = start[[4, 3]]
    changed |= {"two swapped": swapped, "reversed": start.flip(0), "negative": -start}
    changed |= {"rolled": start.roll(1), "zeros": torch.zeros_like(start)}
    sums = {name: slice_sum(value, 0) for name, value in changed.items()}
    assert len(set(sums.values())) == len(sums), sums
    assert slice_sum(start, 1) != sums["as it is"], "its place counts"
    assert slice_sum(start[:0], 0) == 0
