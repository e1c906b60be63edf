"""Ranks that compute every sample together do the same as one rank (DeepSpeed Ulysses)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.stack.training.conftest import Divided, Seen
from tests.stack.training.sequence_scenarios import MATRIX, QUICK
from tests.stack.training.test_equality import assert_same_metrics, relative_difference

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1200)]

# Numbers of one rank only, or that say how it was computed; and metrics of a policy that is its own
# reference, where rounding decides which answer is preferred.
_NOT_COMPARED = (
    *("rows", "num_own_tokens", "num_tokens", "num_states", "parts", "buffers_in_float32"),
    "at_start",
)
# Relative difference of all tensors together. Adam without warm-up divides small gradients by their
# own size, which three steps of it show.
_BOUNDS = {"ema": 5e-6}
_BOUND = 1e-6


def assert_same(found: Any, expected: Any, name: str) -> None:
    """Compare results of a scenario: gradients, weights, metrics, scores."""
    if isinstance(expected, dict):
        if expected and all(isinstance(value, float) for value in expected.values()):
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-6), name
        elif expected and all(isinstance(value, Tensor) for value in expected.values()):
            if sum(value.count_nonzero() for value in expected.values()):
                bound = _BOUNDS.get(name.partition("_")[0], _BOUND)
                assert relative_difference(found, expected) < bound, name
        else:
            for key in expected:
                if key not in _NOT_COMPARED:
                    assert_same(found[key], expected[key], f"{name}: {key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), name
        for mine, theirs in zip(found, expected, strict=True):
            assert_same(mine, theirs, name)
    elif isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=2e-6), name
    else:
        assert found == expected, name


@pytest.mark.parametrize(
    ("scenario", "stage"),
    [(name, stage) for name, (_, stages) in QUICK.items() for stage in stages],
)
def test_two_ranks_that_share_samples_are_one_rank(seen: Seen, scenario, stage):
    name = f"{scenario}_groups_of_2_zero_{stage}"
    first, second = (rank[name] for rank in seen.two)
    assert_same(first, seen.one[scenario], name)
    # The samples are the same, and the first rank answers for both.
    assert_same(second["gradient"], first["gradient"], name)
    if "scores" in first:
        assert first["scores"].count_nonzero() > 4
        assert second["scores"].numel() == 0


def test_ranks_that_see_their_own_piece_alone_are_found_at_the_start(seen: Seen):
    for rank in seen.two:
        error = rank["without_exchange"]["error"]
        assert "sequence_parallel_size=2: LlamaModel cannot be divided" in error
        assert "hidden states" in error


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in MATRIX[4] if not name.startswith("resumed")])
def test_four_ranks_in_groups_are_one_rank(divided: Divided, name):
    scenario = name.partition("_groups_of_")[0]
    expected, found = divided.one[scenario], divided.four[0][name]
    if scenario == "bfloat16":
        assert relative_difference(found["weights"], expected["weights"]) < 4e-3
    else:
        assert_same(found, expected, name)


@pytest.mark.nightly
@pytest.mark.parametrize("stage", [1, 3])
def test_a_checkpoint_goes_on_with_other_groups(divided: Divided, stage):
    for rank in divided.four:
        result = rank[f"resumed_zero_{stage}"]
        for size in (1, 2):
            weights = result[f"resumed_weights_{size}"]
            assert relative_difference(weights, result["straight_weights"]) < 1e-6
            for mine, theirs in zip(result[f"resumed_{size}"], result["straight"], strict=True):
                assert_same_metrics(mine, theirs, rel=5e-6)
