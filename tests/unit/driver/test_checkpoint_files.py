"""Writing and verifying checkpoints: the manifest, failures in between, what is removed."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from rlhf_ray.checkpoint_files.manifest import Manifest, files_below
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.driver import checkpoint_folders as module
from rlhf_ray.driver.checkpoint_state import DamagedCheckpointError, read_manifest, read_state
from rlhf_ray.driver.checkpoints import Checkpoints
from tests.unit.driver.checkpoint_fakes import (
    STATE,
    WritingRanks,
    disk_is_full,
    step_checkpoints,
    without_manifest,
    written,
)

SHARD = "learner/state_rank_00001_0000.safetensors"


def test_the_manifest_has_every_file_but_itself_and_the_marker(tmp_path):
    ranks = WritingRanks()
    step_checkpoints(tmp_path, ranks).save(3, STATE)
    folder = tmp_path / "checkpoints" / "step_000003"
    manifest = read_manifest(folder)
    assert manifest is not None
    assert sorted(manifest.files) == sorted(
        set(files_below(folder)) - {"manifest.json", "COMMITTED"}
    )
    assert ranks.sealed == [True], "what is committed is on the disk"
    state = read_state(folder)
    assert state["step"] == 3
    assert state["configuration"]["training.learning_rate"] == 1e-6


def test_the_marker_is_written_last(tmp_path, monkeypatch):
    order: list[str] = []
    write = module._write_synced

    def remember(path: Path, text: str) -> None:
        order.append(path.name)
        write(path, text)

    monkeypatch.setattr(module, "_write_synced", remember)
    written(tmp_path, 1)
    assert order == ["run.json", "manifest.json", "COMMITTED"]


def test_whole_content_is_accepted(tmp_path):
    (folder,) = written(tmp_path, 1)
    ranks = WritingRanks()
    step_checkpoints(tmp_path, ranks).check_content(folder)
    assert ranks.sealed == [False]


def test_one_changed_byte_is_found_and_named(tmp_path):
    (folder,) = written(tmp_path, 1)
    content = bytearray((folder / SHARD).read_bytes())
    content[3] ^= 1
    (folder / SHARD).write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=f"{SHARD} has changed since it was"):
        step_checkpoints(tmp_path).check_content(folder)


def test_a_missing_file_is_found_without_reading_the_others(tmp_path):
    (folder,) = written(tmp_path, 1)
    (folder / SHARD).unlink()
    ranks = WritingRanks()
    with pytest.raises(DamagedCheckpointError, match=f"{SHARD} is missing"):
        step_checkpoints(tmp_path, ranks).check_content(folder)
    assert ranks.sealed == []


def test_a_checkpoint_without_a_manifest_is_not_verified(tmp_path):
    (folder,) = written(tmp_path, 1)
    ranks = WritingRanks()
    step_checkpoints(tmp_path, ranks).check_content(without_manifest(folder))
    assert ranks.sealed == []


def test_a_removed_manifest_is_no_earlier_release(tmp_path):
    (folder,) = written(tmp_path, 1)
    (folder / "manifest.json").unlink()
    with pytest.raises(DamagedCheckpointError, match=r"manifest\.json is missing"):
        read_manifest(folder)


def test_an_empty_marker_beside_a_manifest_is_a_torn_write(tmp_path):
    (folder,) = written(tmp_path, 1)
    (folder / "COMMITTED").write_text("")
    with pytest.raises(DamagedCheckpointError, match=r"COMMITTED is empty, and manifest\.json"):
        read_manifest(folder)


def test_another_manifest_is_not_taken(tmp_path):
    first, second = written(tmp_path, 1, 2)
    (second / "manifest.json").write_bytes((first / "manifest.json").read_bytes() + b" ")
    with pytest.raises(DamagedCheckpointError, match="not the one that COMMITTED names"):
        read_manifest(second)


class TestFailures:
    """A checkpoint that is not written to the end leaves the older ones, and no folder."""

    def test_a_rank_that_fails(self, tmp_path):
        (older,) = written(tmp_path, 1)
        before = {name: (older / name).read_bytes() for name in files_below(older)}
        failing = step_checkpoints(tmp_path, WritingRanks(disk_is_full()), keep_last=1)
        with pytest.raises(RunFailed) as failed:
            failing.save(2, STATE)
        message = str(failed.value)
        assert "unexpected pos 4777344" in message
        assert "step_000002 was not written to the end: its folder was removed" in message
        assert f"the newest committed one is {older}" in message
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000001"]
        assert {name: (older / name).read_bytes() for name in files_below(older)} == before

    def test_a_driver_that_cannot_write(self, tmp_path, monkeypatch):
        (older,) = written(tmp_path, 1)

        def full(path: Path, text: str) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        monkeypatch.setattr(module, "_write_synced", full)
        with pytest.raises(RunFailed, match="No space left on device") as failed:
            step_checkpoints(tmp_path, keep_last=1).save(2, STATE)
        assert isinstance(failed.value.__cause__, OSError)
        assert Checkpoints(tmp_path, keep_last=1).folders() == [older]

    def test_an_old_one_that_cannot_be_removed_is_no_failure_of_the_new_one(
        self, tmp_path, monkeypatch
    ):
        written(tmp_path, 1)
        remove = Checkpoints._remove

        def refuse(self, folder: Path) -> None:
            if folder.name == "step_000001":
                raise PermissionError(errno.EACCES, "Permission denied", str(folder))
            remove(self, folder)

        monkeypatch.setattr(Checkpoints, "_remove", refuse)
        with pytest.raises(PermissionError):
            step_checkpoints(tmp_path, keep_last=1).save(2, STATE)
        names = [folder.name for folder in Checkpoints(tmp_path, keep_last=1).committed()]
        assert names == ["step_000001", "step_000002"]

    def test_the_first_one(self, tmp_path):
        failing = step_checkpoints(tmp_path, WritingRanks(disk_is_full()))
        with pytest.raises(RunFailed, match="there is no other"):
            failing.save(1, STATE)
        assert Checkpoints(tmp_path, keep_last=1).folders() == []

    def test_a_folder_that_the_nodes_do_not_share(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "_VISIBLE_S", 0.0)

        class Elsewhere(WritingRanks):
            def seal_checkpoint(self, folder, *, sync):
                calls = super().seal_checkpoint(folder, sync=sync)
                (folder / "random_rank_00001.pt").unlink()
                return calls

        with pytest.raises(RunFailed, match=r"random_rank_00001\.pt is missing.*all nodes share"):
            step_checkpoints(tmp_path, Elsewhere()).save(1, STATE)


class TestReplacedRuns:
    """Checkpoints of later steps are of the run that was replaced."""

    def test_a_run_from_the_start_keeps_its_own_checkpoints(self, tmp_path):
        """They have smaller numbers than those of the run before."""
        written(tmp_path, 50, 100)
        step_checkpoints(tmp_path, keep_last=2).save(5, STATE)
        names = [folder.name for folder in Checkpoints(tmp_path, keep_last=2).folders()]
        assert names == ["step_000005"]

    def test_a_run_from_an_earlier_step(self, tmp_path):
        written(tmp_path, 2, 4, 6, 8)
        step_checkpoints(tmp_path, keep_last=3).save(5, STATE)
        names = [folder.name for folder in Checkpoints(tmp_path, keep_last=3).folders()]
        assert names == ["step_000002", "step_000004", "step_000005"]


def test_the_manifest_names_the_hash(tmp_path):
    (folder,) = written(tmp_path, 1)
    content = json.loads((folder / "manifest.json").read_text())
    assert content["hash"] == "xxh3_128"
    assert Manifest.from_text((folder / "manifest.json").read_text()).files
