"""The lock of an output folder: between processes, after a kill, and without locks."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.run_folder.lock import LOCK, folder_lock

# Holds the lock of argv[1] until it is killed.
HOLDER = """
import sys, time
from pathlib import Path
from rlhf_ray.run_folder.lock import LOCK, folder_lock
folder = Path(sys.argv[1])
with folder_lock(folder / LOCK, folder=folder) as lock:
    lock.write("sft")
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_told_who_is_there_and_a_killed_one_leaves_no_lock(holder, tmp_path):
    with (
        pytest.raises(RequestError, match="another run is writing there") as refused,
        folder_lock(tmp_path / LOCK, folder=tmp_path),
    ):
        pass
    message = str(refused.value)
    assert f"stage=sft, process {holder.pid} on {os.uname().nodename}, since " in message
    assert str(tmp_path) in message
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with folder_lock(tmp_path / LOCK, folder=tmp_path) as lock:
        assert lock.problem is None
        assert lock.read() == "sft"


def test_a_program_that_the_run_starts_does_not_keep_the_lock(tmp_path):
    with folder_lock(tmp_path / LOCK, folder=tmp_path):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with folder_lock(tmp_path / LOCK, folder=tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_removed_file_is_not_a_lock(tmp_path, monkeypatch):
    """The file is removed by its holder between the opening and the locking by another run."""
    real, calls = fcntl.flock, []

    def flock(descriptor, operation):
        if not calls:
            (tmp_path / LOCK).unlink()
        calls.append(descriptor)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with folder_lock(tmp_path / LOCK, folder=tmp_path) as lock:
        assert len(calls) == 2
        assert lock.is_there()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said(number, tmp_path, monkeypatch):
    def flock(_descriptor, _operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with folder_lock(tmp_path / LOCK, folder=tmp_path) as lock:
        assert lock.problem is not None
        assert os.strerror(number) in lock.problem


def test_a_damaged_text_is_no_holder(tmp_path):
    (tmp_path / LOCK).write_text("{")
    with folder_lock(tmp_path / LOCK, folder=tmp_path) as lock:
        assert lock.read() is None
        lock.write("rl")
        assert lock.read() == "rl"
        with (
            pytest.raises(RequestError, match="stage=rl, process"),
            folder_lock(tmp_path / LOCK, folder=tmp_path),
        ):
            pass


def test_a_folder_that_was_deleted_or_replaced_is_noticed(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with folder_lock(folder / LOCK, folder=folder) as lock:
        assert lock.is_there()
        folder.rename(tmp_path / "moved")
        assert not lock.is_there()
        folder.mkdir()
        (folder / LOCK).touch()
        assert not lock.is_there()
