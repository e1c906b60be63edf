"""Output folders that cannot be written: one sentence each, and nothing left behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.run_folder import place
from rlhf_ray.run_folder.contents import check_owner
from rlhf_ray.run_folder.place import FILES, FOLDERS, prepare_place, remove_made


def _file(folder: Path) -> Path:
    (folder / "file").write_text("mine")
    return folder / "file"


def _below_a_file(folder: Path) -> Path:
    return _file(folder) / "a" / "b"


def _loop(folder: Path) -> Path:
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to(folder / "a")
    return folder / "a" / "run"


def _dangling(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "gone")
    return folder / "link"


def _below_a_dangling_link(folder: Path) -> Path:
    return _dangling(folder) / "run"


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


CASES = {
    "a file": (_file, "it is a file"),
    "below a file": (_below_a_file, "file is a file"),
    "a symlink loop": (_loop, "circle"),
    "a dangling link": (_dangling, "a symbolic link to"),
    "below a dangling link": (_below_a_dangling_link, "a symbolic link to"),
    "a pipe": (_pipe, "a pipe"),
    "a device": (lambda _: Path("/dev/null"), "a device"),
    "below a device": (lambda _: Path("/dev/null/run"), "a device"),
    "a full device": (lambda _: Path("/dev/full"), "a device"),
    "a long name": (lambda folder: folder / ("n" * 300), "longer than"),
    "a long path": (lambda folder: folder / "/".join(["n" * 100] * 50), "longer than"),
    "proc": (lambda _: Path("/proc/run"), "name a folder that you can write"),
    "below proc": (lambda _: Path("/proc/a/b"), "name a folder that you can write"),
    "sys": (lambda _: Path("/sys/run"), "name a folder that you can write"),
}


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize(("make", "words"), CASES.values(), ids=CASES)
def test_a_place_that_cannot_be_written_is_refused_in_one_sentence(make, words, tmp_path):
    folder = make(tmp_path)
    before = _entries(tmp_path)
    with pytest.raises(RequestError) as refused:
        prepare_place(folder)
    message = str(refused.value)
    assert words in message
    assert message.startswith("output_dir is ")
    assert "Errno" not in message
    assert "\n" not in message
    assert _entries(tmp_path) == before


def test_a_new_folder_is_made_and_can_be_removed_again(tmp_path):
    made = prepare_place(tmp_path / "a" / "b")
    assert made == (tmp_path / "a", tmp_path / "a" / "b")
    assert _entries(tmp_path) == sorted(made)
    assert prepare_place(tmp_path / "a" / "b") == ()
    remove_made(made)
    assert _entries(tmp_path) == []


def test_a_folder_with_contents_is_not_removed(tmp_path):
    made = prepare_place(tmp_path / "a" / "b")
    (tmp_path / "a" / "mine").touch()
    remove_made(made)
    assert _entries(tmp_path) == [tmp_path / "a", tmp_path / "a" / "mine"]


def test_a_link_to_a_folder_is_a_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert prepare_place(tmp_path / "link" / "run") == (tmp_path / "link" / "run",)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "may not be written by this user"),
        (errno.EPERM, "may not be written by this user"),
        (errno.ENOSPC, "is full"),
        (errno.EDQUOT, "is full"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(number, words, tmp_path, monkeypatch):
    def write(folder: Path) -> None:
        raise OSError(number, os.strerror(number), str(folder / "x"))

    monkeypatch.setattr(place, "_write_something", write)
    with pytest.raises(RequestError, match=words):
        prepare_place(tmp_path / "a" / "run")
    assert _entries(tmp_path) == []


def test_a_disk_without_space_for_any_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(place, "free_bytes", lambda _: 1024)
    with pytest.raises(RequestError, match="too little space") as refused:
        prepare_place(tmp_path / "run")
    assert "mounted at" in str(refused.value)
    assert _entries(tmp_path) == []


@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_where_a_folder_is_written_is_refused_at_once(name, tmp_path):
    (tmp_path / name).write_text("in the way")
    with pytest.raises(RequestError, match=f"{name} in it is not a folder"):
        prepare_place(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_where_a_file_is_written_is_refused_at_once(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(RequestError, match=f"{name} in it is not a file"):
        prepare_place(tmp_path)


def test_a_dangling_link_where_the_run_writes_is_refused(tmp_path):
    (tmp_path / "checkpoints").symlink_to(tmp_path / "gone")
    with pytest.raises(RequestError, match="checkpoints in it is a symbolic link"):
        prepare_place(tmp_path)


class TestFixedPlaces:
    """The end of a run replaces the folder of the model by a rename."""

    @pytest.mark.parametrize("name", ["adapter", "model", "model_ema"])
    def test_a_link_is_refused(self, name, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(RequestError, match=f"{name} in it is a symbolic link"):
            prepare_place(tmp_path)

    def test_a_mount_point_is_refused(self, tmp_path, monkeypatch):
        (tmp_path / "model").mkdir()
        monkeypatch.setattr("os.path.ismount", lambda path: Path(path).name == "model")
        with pytest.raises(RequestError, match="model in it is a mount point"):
            prepare_place(tmp_path)

    def test_checkpoints_may_be_on_another_disk(self, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "checkpoints").symlink_to(tmp_path / "elsewhere")
        prepare_place(tmp_path)


class TestOwner:
    def test_a_model_from_elsewhere_is_not_deleted(self, tmp_path):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "precious.txt").write_text("mine")
        with pytest.raises(RequestError, match=r"holds model, and no config\.yaml or lock file"):
            check_owner(tmp_path, "export", written=None)

    def test_a_model_of_the_same_stage_is_replaced(self, tmp_path):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("{}")
        check_owner(tmp_path, "export", written="export")
