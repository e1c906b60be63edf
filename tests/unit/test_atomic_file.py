"""Atomic writes of files and folders: errors, kills and earlier content."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_ray.atomic_file import atomic_file, atomic_folder, write_atomically

KILLED = """
import os, signal, sys
from pathlib import Path
from rlhf_ray.atomic_file import atomic_file, atomic_folder

with atomic_folder(Path(sys.argv[1], "folder")) as partial, \\
        atomic_file(Path(sys.argv[1], "file")) as file:
    partial.mkdir()
    (partial / "half").write_text("half")
    print("half", file=file, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def write_folder(folder: Path, text: str) -> None:
    with atomic_folder(folder) as partial:
        partial.mkdir()
        (partial / text).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_new_content_replaces_all_of_the_old(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write_atomically(tmp_path / "file", text)
        write_folder(tmp_path / "deep" / "folder", text)
    assert contents(tmp_path) == {"file": "new", "deep/folder/new": "new"}


def test_an_error_keeps_the_old_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "old")
    write_folder(tmp_path / "folder", "old")

    def fail_in_file() -> None:
        with atomic_file(tmp_path / "file") as file:
            file.write("half")
            raise OSError("full")

    def fail_in_folder() -> None:
        with atomic_folder(tmp_path / "folder") as partial:
            partial.mkdir()
            (partial / "half").write_text("half")
            raise OSError("full")

    for fail in (fail_in_file, fail_in_folder):
        with pytest.raises(OSError, match="full"):
            fail()
    assert contents(tmp_path) == {"file": "old", "folder/old": "old"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_kill_keeps_the_old_content_and_the_next_write_works(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "old")
    write_folder(tmp_path / "folder", "old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert contents(tmp_path) == {
        "file": "old",
        "file.partial": "half\n",
        "folder/old": "old",
        "folder.partial/half": "half",
    }
    write_atomically(tmp_path / "file", "new")
    write_folder(tmp_path / "folder", "new")
    assert contents(tmp_path) == {"file": "new", "folder/new": "new"}


def test_a_complete_folder_survives_a_failed_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError("no rename")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no rename"):
        write_folder(tmp_path / "folder", "new")
    assert contents(tmp_path) == {"folder.partial/new": "new"}


def test_a_lone_surrogate_is_escaped(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", json.dumps("ä\ud800", ensure_ascii=False))
    assert json.loads((tmp_path / "file").read_text(encoding="utf-8")) == "ä\ud800"


def test_a_link_in_the_place_of_a_folder_loses_nothing(tmp_path: Path) -> None:
    """It came while the run worked: the new folder is there, what the link showed to as well."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("x")
    (tmp_path / "model").symlink_to(tmp_path / "elsewhere")
    with atomic_folder(tmp_path / "model") as partial:
        partial.mkdir()
        (partial / "new").write_text("y")
    assert (tmp_path / "model" / "new").read_text() == "y"
    assert (tmp_path / "elsewhere" / "kept").read_text() == "x"
