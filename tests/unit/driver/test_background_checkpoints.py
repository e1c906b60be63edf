"""Checkpoints that ranks write while the run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_ray.calls import Call
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.driver.checkpoint_folders import Checkpoints
from rlhf_ray.driver.checkpoint_state import check_whole, is_committed
from rlhf_ray.driver.checkpoints import StepCheckpoints
from rlhf_ray.testing.fake_waiter import InProcessWaiter
from rlhf_ray.testing.fakes import done
from tests.unit.driver.checkpoint_fakes import PARTS, STATE, WritingRanks, run_settings


class SlowRanks(WritingRanks):
    """Ranks whose files are written when the test says so; rank 1 is the last.

    Attributes:
        num_written: ranks that have written.
        waited: seconds that they were asked to wait for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_written = 0
        self.waited: list[float] = []

    def begin_checkpoint(self, folder: Path) -> list[Call]:
        self.num_written = 0
        return super().begin_checkpoint(folder)

    def written_checkpoint(self, *, wait_s: float) -> list[Call]:
        self.waited.append(wait_s)
        if wait_s:
            self.num_written = 2
        calls = super().written_checkpoint(wait_s=wait_s)
        return [
            c if rank < self.num_written else done("learner", rank, None)
            for rank, c in enumerate(calls)
        ]


def checkpoints(output: Path, ranks: WritingRanks, *, timeout_s: float = 60.0) -> StepCheckpoints:
    settings = run_settings()
    return StepCheckpoints(
        Checkpoints(output, keep_last=2),
        roles={"learner": ranks},
        waiter=InProcessWaiter(),
        every_steps=1,
        timeout_s=timeout_s,
        identity=settings.identity,
        settings=settings.in_checkpoint(),
        in_background=True,
    )


def folder(output: Path, step: int) -> Path:
    return output / "checkpoints" / f"step_{step:06d}"


def test_it_is_committed_when_all_ranks_have_written(tmp_path):
    ranks = SlowRanks()
    saver = checkpoints(tmp_path, ranks)
    saver.save(1, STATE)
    for num_written in (0, 1):
        ranks.num_written = num_written
        saver.poll()
        assert not is_committed(folder(tmp_path, 1))
    ranks.num_written = 2
    saver.poll()
    assert check_whole(folder(tmp_path, 1), parts=PARTS)
    assert ranks.waited == [0.0, 0.0, 0.0], "a poll does not wait"
    saver.poll()
    saver.finish()
    assert len(ranks.waited) == 3, "there is nothing more to ask for"


def test_its_state_is_that_of_its_moment(tmp_path):
    ranks, state = SlowRanks(), {"adaptive": {"kl": 0.1}, "pipeline": {"flights": [1, 2]}}
    saver = checkpoints(tmp_path, ranks)
    saver.save(1, state)
    state["pipeline"]["flights"].append(3)
    state["adaptive"]["kl"] = 0.2
    saver.finish()
    found = json.loads((folder(tmp_path, 1) / "run.json").read_text())
    assert found["pipeline"] == {"flights": [1, 2]}
    assert found["adaptive"] == {"kl": 0.1}


def test_the_next_one_waits_for_the_former(tmp_path):
    ranks = SlowRanks()
    saver = checkpoints(tmp_path, ranks)
    saver.save(1, STATE)
    saver.save(2, STATE)
    assert is_committed(folder(tmp_path, 1))
    assert not is_committed(folder(tmp_path, 2))
    assert 0 < ranks.waited[0] <= 60
    saver.finish()
    assert is_committed(folder(tmp_path, 2))


def test_a_run_that_dies_meanwhile_goes_on_from_the_former(tmp_path):
    ranks = SlowRanks()
    saver = checkpoints(tmp_path, ranks)
    saver.save(1, STATE)
    saver.finish()
    saver.save(2, STATE)
    found = Checkpoints(tmp_path, keep_last=2)
    assert found.resolve("auto") == folder(tmp_path, 1)
    assert folder(tmp_path, 2).is_dir()
    # The run that goes on removes what is left.
    again = checkpoints(tmp_path, SlowRanks())
    again.save(3, STATE)
    again.finish()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step_000001",
        "step_000003",
    ]


def test_one_that_takes_too_long_ends_the_run(tmp_path):
    ranks = SlowRanks()
    saver = checkpoints(tmp_path, ranks, timeout_s=0.0)
    saver.save(1, STATE)
    with pytest.raises(RunFailed, match=r"not written within deadlines\.checkpoint_s=0") as late:
        saver.poll()
    assert "there is no other" in str(late.value)
    assert not folder(tmp_path, 1).exists()


def test_a_rank_that_fails_while_it_writes_ends_the_run(tmp_path):
    class Failing(SlowRanks):
        def written_checkpoint(self, *, wait_s: float) -> list[Call]:
            raise RunFailed("learner_1 failed: the disk is full")

    ranks = SlowRanks()
    saver = checkpoints(tmp_path, ranks)
    saver.save(1, STATE)
    saver.finish()
    failing = checkpoints(tmp_path, Failing())
    failing.save(2, STATE)
    with pytest.raises(RunFailed, match="the disk is full") as failed:
        failing.poll()
    assert f"the newest committed one is {folder(tmp_path, 1)}" in str(failed.value)
    assert not folder(tmp_path, 2).exists()
