"""Rollout files in the background: order, a bounded queue, errors, the end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlhf_ray.observe.rollout_log import TokenDetails, rollout_path
from rlhf_ray.observe.rollout_writer import RolloutWriter
from rlhf_ray.records import RolloutGroup
from rlhf_ray.testing.fakes import make_group, make_prompt

WAIT_S = 60


class SlowDisk:
    """Writes a file only when it is told to."""

    def __init__(self) -> None:
        self.may_end = threading.Semaphore(0)
        self.written: list[str] = []

    def write(self, path: Path, groups: Sequence[RolloutGroup], details: TokenDetails) -> None:
        assert self.may_end.acquire(timeout=WAIT_S)
        if path.name == "bad":
            raise OSError("the disk is gone: bad")
        self.written.append(path.name)


def test_files_are_written_in_order_and_the_caller_does_not_wait():
    disk = SlowDisk()
    writer = RolloutWriter(disk.write, max_waiting=2)
    for name in ("1", "2", "3"):
        writer.write(Path(name), [])
    assert disk.written == []
    disk.may_end.release(3)
    writer.flush()
    assert disk.written == ["1", "2", "3"]


def test_a_full_queue_holds_the_caller_up():
    disk = SlowDisk()
    writer = RolloutWriter(disk.write, max_waiting=1)
    writer.write(Path("1"), [])
    writer.write(Path("2"), [])
    third = threading.Thread(target=writer.write, args=(Path("3"), []))
    third.start()
    third.join(0.2)
    assert third.is_alive(), "it would hold one more batch in memory"
    disk.may_end.release(3)
    third.join(WAIT_S)
    writer.flush()
    assert disk.written == ["1", "2", "3"]


def test_an_error_is_raised_by_all_later_calls():
    disk = SlowDisk()
    disk.may_end.release(10)
    writer = RolloutWriter(disk.write)
    writer.write(Path("1"), [])
    writer.write(Path("bad"), [])
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone: bad"):
            writer.flush()
    with pytest.raises(OSError, match="the disk is gone: bad"):
        writer.write(Path("3"), [])
    assert disk.written == ["1"]


def test_real_files(tmp_path):
    writer = RolloutWriter()
    writer.flush()
    group = make_group(make_prompt(0), (0, 1), version=0, rewards=[1.0, 2.0])
    for step in range(1, 6):
        writer.write(rollout_path(tmp_path, step), [group])
    writer.flush()
    files = sorted((tmp_path / "rollouts").iterdir())
    assert [file.name for file in files] == [f"step_{step:06}.jsonl" for step in range(1, 6)]
    assert all(len(file.read_text().splitlines()) == 2 for file in files)
