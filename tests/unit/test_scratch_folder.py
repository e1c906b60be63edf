"""Temporary folders of processes that end in order, that live, and that are killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rlhf_ray.scratch_folder import scratch_folder

OWNER = """
import sys, time
from rlhf_ray.scratch_folder import scratch_folder
with scratch_folder() as folder:
    (folder / "0.sock").touch()
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_it_is_removed_at_the_end(temporary):
    with scratch_folder() as folder:
        assert folder.parent == temporary
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").touch()
    assert list(temporary.iterdir()) == []


def test_two_at_the_same_time(temporary):
    with scratch_folder() as first, scratch_folder() as second:
        assert first != second
        assert first.is_dir()


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_stays(temporary):
    owners = [
        subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
        for _ in "ab"
    ]
    try:
        killed, living = (Path(first_line(owner)) for owner in owners)
        with scratch_folder():
            assert killed.is_dir()
        owners[0].kill()
        owners[0].wait()
        assert killed.is_dir(), "it could not remove it"
        with scratch_folder():
            assert not killed.exists()
            assert (living / "0.sock").exists()
    finally:
        for owner in owners:
            owner.kill()
            owner.communicate()


def test_what_is_not_ours_stays(temporary):
    """Folders without a lock, which another program may have made, and links."""
    (temporary / "rlhf_ray_other").mkdir()
    target = temporary / "target"
    target.mkdir()
    (target / "owner.lock").touch()
    (temporary / "rlhf_ray_link").symlink_to(target)
    with scratch_folder():
        assert {path.name for path in temporary.iterdir()} >= {
            "rlhf_ray_other",
            "rlhf_ray_link",
            "target",
        }
    assert (target / "owner.lock").exists()


def test_a_folder_of_another_user_stays(temporary, monkeypatch):
    abandoned = temporary / "rlhf_ray_x"
    abandoned.mkdir()
    (abandoned / "owner.lock").touch()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with scratch_folder():
        assert abandoned.is_dir()
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with scratch_folder():
        assert not abandoned.exists()
