"""Sums over frozen weights: the same however a tensor is cut, another one for other values."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlhf_ray.checkpoint_files.slice_index import NUM_SUMS, SavedTensor, read_indexes
from rlhf_ray.training.engine.shards import distinct_tensors
from rlhf_ray.training.engine.slicing.tensor_slice import TensorGroup, mark_slices
from rlhf_ray.training.engine.state import frozen_weights, state_parts
from rlhf_ray.training.engine.state.frozen_weights import FrozenWeights, slice_sum
from rlhf_ray.training.engine.state.state_files import write_parts
from rlhf_ray.training.engine.state.state_parts import StatePart, own_share, plain_part

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


class Ranks:
    """Four ranks in groups of two that hold a model in slices, one after the other.

    The sum over ranks is that of tables which all of them have given before.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, seed: int) -> None:
        self._monkeypatch = monkeypatch
        self._modules = [_slices_of(seed, rank) for rank in range(4)]
        self.frozen = [FrozenWeights(module) for module in self._modules]
        tables: list[torch.Tensor] = []
        monkeypatch.setattr(frozen_weights, "reduce_over_ranks", lambda t: tables.append(t) or t)
        for rank in range(4):
            self.run(rank, lambda rank=rank: self.frozen[rank]._whole())
        total = torch.stack(tables).sum(dim=0)
        monkeypatch.setattr(frozen_weights, "reduce_over_ranks", lambda _: total)

    def run(self, rank: int, what: Callable[[], Any]) -> Any:
        self._monkeypatch.setattr(state_parts, "rank", lambda: rank)
        self._monkeypatch.setattr(state_parts, "world_size", lambda: 4)
        return what()

    def parts(self, rank: int) -> list[StatePart]:
        return [plain_part(name, t) for name, t in distinct_tensors(self._modules[rank]).items()]

    def save(self, folder: Path) -> dict[str, SavedTensor]:
        for rank in range(4):
            self.run(
                rank,
                lambda rank=rank: write_parts(
                    folder,
                    "state",
                    rank,
                    self.frozen[rank].left_out(own_share(part) for part in self.parts(rank)),
                ),
            )
        return read_indexes(folder, "state", 4)

    def read(self, folder: Path, saved: dict[str, SavedTensor]) -> list[list[str]]:
        """Names of the parts that every rank still has to read."""
        return [
            self.run(
                rank,
                lambda rank=rank: [
                    part.name
                    for part in self.frozen[rank].still_to_read(folder, saved, self.parts(rank))
                ],
            )
            for rank in range(4)
        ]


def _slices_of(seed: int, rank: int) -> nn.Module:
    """A rank's slices: of the first weight by rows, of the second by columns, a norm as it is."""
    numbers = torch.Generator().manual_seed(0)
    whole = [torch.randn(shape, generator=numbers) for shape in ((6, 4), (4, 6), (5,))]
    if seed:
        whole[1][3, 4] += 1  # In the second slice alone.
    group: Any = TensorGroup(
        size=2, index=rank % 2, group=None, data_group=None, data_size=2, data_index=rank // 2
    )
    module = nn.ParameterDict(
        {
            "opens": whole[0].chunk(2, dim=0)[rank % 2].clone(),
            "closes": whole[1].chunk(2, dim=1)[rank % 2].clone(),
            "norm": whole[2],
        }
    )
    for parameter in module.parameters():
        parameter.requires_grad = False
    mark_slices(module, group, {"opens": (6, 4), "closes": (4, 6), "norm": (5,)})
    return module


def test_slices_have_sums_that_every_rank_knows(monkeypatch, tmp_path):
    ranks = Ranks(monkeypatch, seed=0)
    saved = ranks.save(tmp_path)
    assert list(tmp_path.glob("*.safetensors")) == [], "no value is written"
    names = {"norm", *(f"{name}@{i}of2" for name in ("opens", "closes") for i in (0, 1))}
    assert saved.keys() == names
    assert all(tensor.checksum is not None for tensor in saved.values())
    # The sum of a slice is that of its values, whoever has looked at which part of it.
    whole = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert saved["opens@1of2"].checksum == slice_sum(whole[3:].reshape(-1), 0)
    assert ranks.read(tmp_path, saved) == [[]] * 4
    other = Ranks(monkeypatch, seed=1)
    for rank in range(4):  # Also those that hold the other slice.
        with pytest.raises(ValueError, match=r"another base model.* and closes@1of2 of this run"):
            other.run(
                rank,
                lambda rank=rank: other.frozen[rank].still_to_read(
                    tmp_path, saved, other.parts(rank)
                ),
            )
