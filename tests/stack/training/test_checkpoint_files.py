"""Checkpoint files of every role, ZeRO stage and number format: read as data, never run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.stack.training.checkpoint_scenarios import RESTORED
from tests.stack.training.conftest import Seen

pytestmark = [pytest.mark.stack, pytest.mark.slow]

# Of this release, and of those before.
KINDS = {
    *("state_rank_00000.json", "state_rank_00000_0000", "random_rank", "latest_"),
    *("moving_rank_00000.json", "moving_rank_00000_0000"),
    *("model_states", "optim_states", "average_rank", "moving_rank_00000.pt"),
}


@pytest.mark.parametrize("scenario", RESTORED[1])
def test_code_in_any_file_of_a_checkpoint_is_refused(restored: Seen, scenario):
    found = restored.one[scenario]
    assert not found["ran"]
    # A reference has one file or two, a trained role at least two.
    assert len(found["files"]) >= (1 if "reference" in scenario else 2)
    assert sorted(found["errors"]) == sorted(found["files"])
    for name, message in found["errors"].items():
        assert name in message
        if name.endswith(".pt"):
            assert message.startswith("UnsafeFileError: "), message
            assert "posix.system, which could run code" in message
        elif name.endswith(".safetensors"):
            # It has no place for code.
            assert message.startswith("DamagedFileError: "), message
        else:
            assert f"{name} is damaged" in message


def test_every_kind_of_file_was_tried(restored: Seen):
    names = [name for found in restored.one.values() for name in found["files"]]
    assert {kind for kind in KINDS if any(kind in Path(name).name for name in names)} == KINDS


@pytest.mark.parametrize("scenario", [name for name in RESTORED[2] if "earlier" in name])
def test_a_checkpoint_of_an_earlier_release_fits_one_layout(restored: Seen, scenario):
    for rank in restored.two:
        stage = scenario[-1]
        message = rank[scenario]["other_stage"]
        assert f"was written with zero_stage={stage}, and this run has zero_stage=1" in message
        assert "of a release whose checkpoints fit one layout alone" in message


@pytest.mark.parametrize("scenario", RESTORED[2])
def test_a_resumed_run_equals_the_straight_one(restored: Seen, scenario):
    for rank in restored.two:
        result = rank[scenario]
        assert result["resumed"] == result["straight"]
        for name, value in result["straight_weights"].items():
            assert torch.equal(result["resumed_weights"][name], value), name
