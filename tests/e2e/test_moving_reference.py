"""A run whose reference moves and whose policy is averaged: it resumes exactly."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.e2e.run_command import without_times

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900), pytest.mark.nightly]
OPTIONS = (
    "algorithm.kl_coefficient=0.05",
    "algorithm.reference_every=2",
    "algorithm.reference_decay=0.25",
    "reference.dtype=bfloat16",
    "training.ema_decay=0.5",
    "checkpoint.every_steps=3",
    "num_steps=5",
)


def test_killed_and_resumed_equals_uninterrupted(make_run):
    straight = make_run(*OPTIONS, output="straight").succeed()

    killed = make_run(*OPTIONS, output="resumed")
    killed.wait_for_step(4)
    killed.descendants()
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.wait(10)
    killed.survivors()

    resumed = make_run(*OPTIONS, output="resumed").succeed()
    assert "resumed after step 3" in resumed.text
    expected = without_times(straight.metrics())
    assert without_times(resumed.metrics()) == expected
    assert [row["reference/version"] for row in expected] == [0, 2, 2, 4, 4]

    for name in ("model", "model_ema"):
        first, second = (weights_of(run.output / name) for run in (straight, resumed))
        assert all(torch.equal(first[key], second[key]) for key in first)
    latest, average = (weights_of(straight.output / name) for name in ("model", "model_ema"))
    assert latest.keys() == average.keys()
    assert not torch.equal(latest["model.norm.weight"], average["model.norm.weight"])


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()
