"""Checkpoints that other numbers of ranks and other ZeRO stages go on from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.stack.training.conftest import Seen
from tests.stack.training.relaid_scenarios import LONG, QUICK, Case, Layout, resumed_name
from tests.stack.training.test_equality import relative_difference

pytestmark = pytest.mark.stack

# Each rank knows only what it has trained on.
_OF_A_RANK = ("tokens/trained",)


def pairs(cases: tuple[Case, ...]) -> list[Any]:
    return [
        pytest.param(case, layout, id=resumed_name(case, layout))
        for case in cases
        for layout in case.resumed
    ]


def assert_goes_on(seen: Seen, case: Case, layout: Layout) -> None:
    saved = (seen.one if case.saved.ranks == 1 else seen.two[0])[case.name]
    ranks = [seen.one] if layout.ranks == 1 else list(seen.two)
    for rank in ranks:
        result = rank[resumed_name(case, layout)]
        # What was saved is what was loaded, bit for bit.
        for name, value in saved["state"].items():
            assert torch.equal(result["state"][name], value), name
        for found, expected in zip(result["next"], saved["next"], strict=True):
            assert found.keys() == expected.keys()
            for name in expected.keys() - set(_OF_A_RANK):
                assert found[name] == pytest.approx(expected[name], rel=case.rel, abs=1e-6), name
        # Adam divides by the size of the gradient, so that moments of 0 would show here.
        if saved["last"]:
            assert relative_difference(result["last"], saved["last"]) < 10 * case.rel
            assert relative_difference(saved["state"], saved["last"]) > 1e-4
        if "moments" in saved:
            assert result["moments"] == pytest.approx(saved["moments"], rel=1e-6)
    losses = [name for name in saved["first"] if "grad_norm" in name]
    assert losses
    assert saved["first"][losses[0]] != pytest.approx(saved["next"][0][losses[0]], rel=1e-4)


@pytest.mark.parametrize(("case", "layout"), pairs(QUICK))
def test_another_layout_goes_on(relaid: Seen, case: Case, layout: Layout):
    assert_goes_on(relaid, case, layout)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("case", "layout"), pairs(LONG))
def test_every_other_layout_goes_on(relaid_all: Seen, case: Case, layout: Layout):
    assert_goes_on(relaid_all, case, layout)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_reference_that_moves_goes_on_in_another_layout(relaid_all: Seen):
    first, second = relaid_all.two
    saved = first["reference"]["state"]
    found = [
        relaid_all.one["reference_on_1"],
        relaid_all.one["reference_on_1_zero_3"],
        first["reference_on_2"],
        second["reference_on_2"],
    ]
    assert saved
    for result in found:
        for name, value in saved.items():
            assert torch.equal(result["state"][name], value), name
