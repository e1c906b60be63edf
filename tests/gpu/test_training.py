"""The learner on a GPU against the learner on the CPU, through the real DeepSpeed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.stack.training.conftest import (
    free_ports,
    load_results,
    make_inputs,
    start_worker,
    wait_for,
)

STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What two updates gave, by device and scenario; one process at a time has the GPU."""
    seen = {}
    for device in ("on_cpu", "on_gpu"):
        folder = tmp_path_factory.mktemp(device)
        make_inputs(folder / device)
        wait_for({"1_0": start_worker(folder, 0, 1, free_ports(20), [device])}, folder)
        seen[device] = load_results(folder / device, "1_0")
    return seen


@pytest.mark.parametrize("stage", STAGES)
def test_float32_gives_the_same_as_on_the_cpu(results, stage):
    right, found = (results[d][f"float32_zero_{stage}"] for d in ("on_cpu", "on_gpu"))
    for expected, metrics in zip(right["metrics"], found["metrics"], strict=True):
        for name in ("policy/loss", "policy/grad_norm", "policy/entropy"):
            assert metrics[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
    for name, weight in right["weights"].items():
        torch.testing.assert_close(found["weights"][name].cpu(), weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16_stays_near(results, stage):
    right, found = results["on_cpu"]["float32_zero_0"], results["on_gpu"][f"bfloat16_zero_{stage}"]
    for expected, metrics in zip(right["metrics"], found["metrics"], strict=True):
        assert metrics["policy/entropy"] == pytest.approx(expected["policy/entropy"], rel=0.02)
        assert metrics["policy/grad_norm"] == pytest.approx(expected["policy/grad_norm"], rel=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_goes_on_from_a_checkpoint(results, dtype):
    seen = results["on_gpu"][f"resume_{dtype}"]
    for name, weight in seen["straight_weights"].items():
        torch.testing.assert_close(seen["resumed_weights"][name], weight, rtol=1e-5, atol=1e-6)
