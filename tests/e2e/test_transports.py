"""Runs of the command with weights by every transport, of a plain model and of a mixture."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from rlhf_ray.testing.tiny import tiny_mixture

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]
# A learning rate at which a publish that is lost is beyond the gate's tolerance.
STEPS = ("num_steps=3", "training.learning_rate=1e-2", "publish.bucket_bytes=65536")


def check(run) -> None:
    rows = run.metrics()
    assert [row["publish/version"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row["publish/probe_gap_max"] < 1e-3
        assert row["rollout/logprob_gap_max"] < 1e-3


@pytest.mark.nightly
def test_a_run_by_collective(make_run):
    run = make_run(*STEPS, "publish.transport=collective").succeed()
    check(run)
    assert run.survivors() == []


@pytest.mark.nightly
@pytest.mark.parametrize("transport", ["object_store", "collective", "ipc"])
def test_a_mixture_of_experts_trains(make_run, tmp_path, transport):
    model = tiny_mixture(tmp_path / "mixture")
    shape = ("training.num_ranks=2", "training.zero_stage=2", "training.cpu_threads=1")
    run = make_run(f"model.path={model}", *STEPS, *shape, f"publish.transport={transport}")
    check(run.succeed(600))
    # The experts move: a gate over weights that stay the same proves nothing.
    before, after = (
        load_file(folder / "model.safetensors") for folder in (model, run.output / "model")
    )
    experts = [name for name in before if ".experts." in name]
    assert any(not torch.equal(before[name], after[name]) for name in experts)
