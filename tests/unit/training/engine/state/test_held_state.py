"""Slices as bytes, and back into the parts of another rank of the same place."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlhf_ray.training.engine.state.held_state import held_slices, put_back
from rlhf_ray.training.engine.state.state_parts import WEIGHT, StatePart


def part(name: str, weight: Tensor, *, step: int | None = 3, start: int = 0) -> StatePart:
    values = {WEIGHT: weight}
    if step is not None:
        values |= {"exp_avg": weight.float() * 2, "exp_avg_sq": weight.float() * 3}
    return StatePart(name=name, shape=(4,), start=start, values=values, step=step)


def parts(fill: float) -> list[StatePart]:
    return [
        part("a", torch.full((4,), fill)),
        part("b", torch.full((2,), fill, dtype=torch.bfloat16), start=2),
        part("counter", torch.full((), int(fill)).view(1), step=None),
        part("nothing", torch.empty(0), step=None),
    ]


def test_values_come_back_bit_for_bit():
    source, target = parts(1.7), parts(0.0)
    slices = held_slices(source)
    assert slices["b"].values[WEIGHT].nbytes == 4
    put_back(slices, target)
    for one, other in zip(source, target, strict=True):
        for kind, value in one.values.items():
            assert torch.equal(other.values[kind], value), (one.name, kind)


def test_before_the_first_step_there_are_no_moments():
    source, target = [part("a", torch.ones(4), step=0)], [part("a", torch.zeros(4), step=0)]
    bare = [replace(target[0], values={WEIGHT: target[0].values[WEIGHT]})]
    put_back(held_slices(source), bare)
    assert torch.equal(bare[0].values[WEIGHT], torch.ones(4))


@pytest.mark.parametrize(
    "target",
    [
        [part("other", torch.zeros(4))],
        [part("a", torch.zeros(3))],
        [part("a", torch.zeros(4), start=4)],
        [part("a", torch.zeros(4)), part("b", torch.zeros(4))],
    ],
    ids=["another name", "another length", "another place", "a part without a state"],
)
def test_the_state_of_another_place_is_refused(target):
    with pytest.raises(ValueError, match=r"of a rank that holds other slices of (a|b|other)"):
        put_back(held_slices([part("a", torch.ones(4))]), target)
    assert all(not value.any() for one in target for value in one.values.values())
