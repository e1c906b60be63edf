"""Folders that are made once: races, kills, deadlines; with real processes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.models.folder import MARKER, make_once

# Makes the folder argv[1] slowly; appends a line to argv[2] when it starts and when it is done.
MAKER = """
import sys, time
from pathlib import Path
from rlhf_ray.models.folder import make_once

def make(folder):
    with open(sys.argv[2], "a") as log:
        print("started", file=log, flush=True)
        (folder / "part").write_text("half")
        time.sleep(float(sys.argv[3]))
        (folder / "part").write_text("whole")
        print("done", file=log, flush=True)

make_once(Path(sys.argv[1]), make, recipe="r", timeout_s=30)
"""


def start_maker(folder: Path, log: Path, seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", MAKER, str(folder), str(log), str(seconds)])


def wait_for(log: Path, word: str) -> None:
    deadline = time.monotonic() + 30
    while not (log.exists() and word in log.read_text()):
        assert time.monotonic() < deadline, f"no {word!r} within 30 s"
        time.sleep(0.02)


def make(folder: Path, text: str = "x", *, recipe: str = "r", timeout_s: float = 5) -> list[Path]:
    """Make `folder` with one file; the temporary folders in which it was done."""
    calls: list[Path] = []

    def write(temporary: Path) -> None:
        calls.append(temporary)
        (temporary / "file").write_text(text)

    make_once(folder, write, recipe=recipe, timeout_s=timeout_s)
    return calls


def test_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    assert len(make(folder)) == 1
    assert make(folder, "other") == []
    assert (folder / "file").read_text() == "x"
    assert sorted(path.name for path in folder.iterdir()) == sorted([MARKER, "file"])


def test_another_recipe_replaces_it(tmp_path: Path) -> None:
    make(tmp_path / "model")
    make(tmp_path / "model", "new", recipe="r2")
    assert (tmp_path / "model" / "file").read_text() == "new"


def test_a_failure_leaves_nothing_and_the_next_try_works(tmp_path: Path) -> None:
    def fail(temporary: Path) -> None:
        (temporary / "file").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        make_once(tmp_path / "model", fail, recipe="r", timeout_s=5)
    assert [path.name for path in tmp_path.iterdir()] == [".model.lock"]
    assert len(make(tmp_path / "model")) == 1


def test_killed_in_the_middle(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start_maker(tmp_path / "model", log, 60)
    wait_for(log, "started")
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    assert not (tmp_path / "model").exists()
    assert len(make(tmp_path / "model", "whole")) == 1
    assert (tmp_path / "model" / "file").read_text() == "whole"
    assert not (tmp_path / "model" / "part").exists()


@pytest.mark.unit_slow
def test_two_processes_make_it_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start_maker(tmp_path / "model", log, 0.5) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert log.read_text().split() == ["started", "done"]
    assert (tmp_path / "model" / "part").read_text() == "whole"


@pytest.mark.unit_slow
def test_waiting_has_a_deadline(tmp_path: Path) -> None:
    reports: list[str] = []
    with (tmp_path / ".model.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=r"another process has held .* for 0.5 s"):
            make_once(
                tmp_path / "model",
                lambda temporary: None,
                recipe="r",
                timeout_s=0.5,
                report=reports.append,
            )
    assert 0.5 <= time.monotonic() - started < 5
    assert len(reports) == 1
    assert not (tmp_path / "model").exists()


def test_a_foreign_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.tex").write_text("precious")
    with pytest.raises(RequestError, match="was not made by this command"):
        make(tmp_path / "model")
    assert os.listdir(tmp_path / "model") == ["thesis.tex"]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert len(make(tmp_path / "model")) == 1
