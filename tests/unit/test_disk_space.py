"""Full disks: the file that says ENOSPC is /dev/full, and torch writes there, too."""

from __future__ import annotations

import errno
import os
import pickle
import tempfile
from pathlib import Path

import pytest
import torch

from rlhf_ray import disk_space
from rlhf_ray.atomic_file import atomic_folder, partial_path, write_atomically
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.disk_space import DiskFull, existing, free_bytes, full_disk_said
from rlhf_ray.observe.metrics import JsonlWriter

FULL = Path("/dev/full")


@pytest.fixture
def nothing_free(monkeypatch):
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: 0)


def test_metrics_on_a_full_disk(tmp_path, nothing_free):
    path = tmp_path / "metrics.jsonl"
    path.symlink_to(FULL)
    writer = JsonlWriter.__new__(JsonlWriter)
    writer._path, writer._file = path, path.open("a", encoding="utf-8")
    with pytest.raises(DiskFull, match=r"metrics\.jsonl: the disk of .* is full: free some space"):
        writer.write(1, {"loss": 1.0})


def test_a_text_on_a_full_disk(tmp_path):
    path = tmp_path / "summary.json"
    partial_path(path).symlink_to(FULL)
    with pytest.raises(DiskFull, match=r"cannot write .*summary\.json: .* full"):
        write_atomically(path, "text")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nothing_free")
def test_torch_on_a_full_disk(tmp_path):
    with (
        pytest.raises(DiskFull, match=r"step_000004: the disk of .* is full"),
        full_disk_said(tmp_path / "step_000004"),
    ):
        torch.save({"a": torch.zeros(1_000_000)}, FULL)


def test_torchs_words_with_enough_space_are_another_fault(tmp_path):
    with pytest.raises(RuntimeError, match="inline_container"), full_disk_said(tmp_path):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 4 vs 2")


def test_a_folder_on_a_full_disk_is_looked_at_before_it_is_cleaned_up(tmp_path, monkeypatch):
    """What was half written is removed, and the disk then has space again."""
    monkeypatch.setattr(
        disk_space,
        "free_bytes",
        lambda _: 0 if (tmp_path / "model.partial").exists() else 10**12,
    )

    def write() -> None:
        with atomic_folder(tmp_path / "model") as part:
            part.mkdir()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DiskFull, match="is full: free"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_the_disk_that_is_full_is_named_and_not_that_of_the_run(tmp_path, monkeypatch):
    other = Path(tempfile.gettempdir())
    monkeypatch.setattr(disk_space, "free_bytes", lambda p: 0 if p == other else 10**12)
    with (
        pytest.raises(DiskFull, match=f"the disk of {other} .* is full"),
        full_disk_said(tmp_path / "run"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_quota_does_not_name_a_disk_as_full(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: 10**12)
    with (
        pytest.raises(DiskFull, match="a disk or a quota is full; there are the disk of"),
        full_disk_said(tmp_path / "run"),
    ):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


@pytest.mark.parametrize(
    "error", [RunFailed("learner_0 failed: No space left on device"), KeyError("x"), OSError("x")]
)
def test_other_errors_pass(error, tmp_path):
    with pytest.raises(type(error)) as raised, full_disk_said(tmp_path):
        raise error
    assert raised.value is error


def test_the_error_crosses_processes():
    assert str(pickle.loads(pickle.dumps(DiskFull("the disk of /a is full")))).endswith("is full")


def test_space_of_a_folder_that_does_not_exist_yet(tmp_path):
    assert existing(tmp_path / "a" / "b") == tmp_path
    assert free_bytes(tmp_path / "a" / "b") == free_bytes(tmp_path)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_metrics_that_would_go_to_a_deleted_file_end_the_run(is_replaced, tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path, last_step=0)
    writer.write(1, {"loss": 1.0})
    path.unlink()
    if is_replaced:
        path.touch()
    with pytest.raises(RunFailed, match="was deleted, moved or replaced"):
        writer.write(2, {"loss": 1.0})
