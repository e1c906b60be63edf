"""Ranks that hold a model's matrices in slices do the same as one rank (DeepSpeed AutoTP)."""

from __future__ import annotations

import pytest
import torch

from tests.stack.training.conftest import Divided, Seen
from tests.stack.training.slice_scenarios import QUICK, SLICE_MATRIX
from tests.stack.training.test_equality import assert_same_metrics, relative_difference
from tests.stack.training.test_sequence_parallel import assert_same

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1200)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "stage"),
    [(name, stage) for name, (_, stages) in QUICK.items() for stage in stages],
)
def test_two_ranks_that_hold_slices_are_one_rank(paired: Seen, scenario, stage):
    name = f"{scenario}_in_slices_zero_{stage}"
    first, second = (rank[name] for rank in paired.two)
    assert_same(first, paired.one[scenario], name)
    # Both have the whole gradient of their slices, and the first rank answers for both.
    assert_same(second["gradient"], first["gradient"], name)
    if "scores" in first:
        assert first["scores"].count_nonzero() > 4
        assert second["scores"].numel() == 0


@pytest.mark.slow
def test_layers_that_leave_out_an_exchange_are_found_at_the_start(paired: Seen):
    for rank in paired.two:
        error = rank["without_the_sum"]["error"]
        assert "tensor_parallel_size=2: LlamaModel cannot be divided" in error
        assert "hidden states" in error


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name", [name for name in SLICE_MATRIX[4] if not name.startswith("resumed")]
)
def test_four_ranks_in_slices_are_one_rank(sliced: Divided, name):
    scenario = name.partition("_in_slices_")[0]
    expected, found = sliced.one[scenario], sliced.four[0][name]
    if scenario == "bfloat16":
        assert relative_difference(found["weights"], expected["weights"]) < 4e-3
    else:
        assert_same(found, expected, name)


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in SLICE_MATRIX[4] if "two_steps" in name])
def test_weights_that_all_ranks_hold_stay_the_same_on_all(sliced: Divided, name):
    first, *others = (rank[name]["weights"] for rank in sliced.four)
    for weights in others:
        for key, tensor in first.items():
            assert torch.equal(weights[key], tensor), key


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in SLICE_MATRIX[4] if name.startswith("resumed")])
def test_a_checkpoint_of_slices_goes_on_at_every_stage(sliced: Divided, name):
    for rank in sliced.four:
        result = rank[name]
        for now in (0, 1, 2, 3):
            weights = result[f"resumed_weights_{now}"]
            assert relative_difference(weights, result["straight_weights"]) < 1e-6
            for mine, theirs in zip(result[f"resumed_{now}"], result["straight"], strict=True):
                assert_same_metrics(mine, theirs, rel=5e-6)
        assert "written with tensor_parallel_size=2" in result["refused"]
        assert "this run has tensor_parallel_size=1" in result["refused"]
