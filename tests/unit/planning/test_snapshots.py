"""Memory of snapshots by arithmetic."""

from __future__ import annotations

from rlhf_ray.planning.storage.snapshots import snapshot_lines
from rlhf_ray.stages.stage import describe_training
from tests.unit.planning.test_disk import config_of, model

__all__ = ["model"]
ON = "recovery.max_restarts=3"


def test_a_large_model(model):
    (line,) = snapshot_lines(config_of(model, ON))
    assert line.startswith(
        "Snapshot after each step: 872 GB (learner 13.6 GB on each of 64 ranks), twice in Ray's "
        "object store while one is taken; some 6.8 s, while the engines sample"
    )
    assert "Snapshot" not in describe_training(config_of(model))
    assert snapshot_lines(config_of(model)) == []


def test_without_zero_every_rank_holds_all_and_gives_all(model):
    (line,) = snapshot_lines(config_of(model, ON, "training.num_ranks=2", "training.zero_stage=0"))
    assert "1.74 TB (learner 872 GB on each of 2 ranks)" in line


def test_without_snapshots_the_checkpoint_is_the_source(model):
    off = (ON, "recovery.snapshot_every=0")
    assert "from the last checkpoint" in snapshot_lines(config_of(model, *off))[0]
    (line,) = snapshot_lines(config_of(model, *off, "checkpoint.every_steps=0"))
    assert "from the start, with all updates since then" in line
