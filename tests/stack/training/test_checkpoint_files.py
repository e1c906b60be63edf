"""Checkpoint files of every role, ZeRO stage and number format: read as data, never run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.stack.training.checkpoint_scenarios import RESTORED
from tests.stack.training.conftest import Seen

pytestmark = pytest.mark.stack

KINDS = {"model_states", "optim_states", "random_rank", "average_rank", "moving_rank", "latest_"}


@pytest.mark.parametrize("scenario", RESTORED[1])
def test_code_in_any_file_of_a_checkpoint_is_refused(restored: Seen, scenario):
    found = restored.one[scenario]
    assert not found["ran"]
    # The reference has one file, a trained role at least two.
    assert len(found["files"]) >= (1 if scenario == "reference" else 2)
    assert sorted(found["errors"]) == sorted(found["files"])
    for name, message in found["errors"].items():
        assert message.startswith("UnsafeFileError: "), message
        assert name in message
        assert "posix.system, which could run code" in message


def test_every_kind_of_file_was_tried(restored: Seen):
    names = [name for found in restored.one.values() for name in found["files"]]
    assert {kind for kind in KINDS if any(kind in Path(name).name for name in names)} == KINDS


@pytest.mark.parametrize("scenario", RESTORED[2])
def test_a_resumed_run_equals_the_straight_one(restored: Seen, scenario):
    for rank in restored.two:
        result = rank[scenario]
        assert result["resumed"] == result["straight"]
        for name, value in result["straight_weights"].items():
            assert torch.equal(result["resumed_weights"][name], value), name
