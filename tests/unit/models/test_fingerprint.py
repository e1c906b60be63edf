"""Hashes of model files: what they notice, and how little they read."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.numpy import save_file

from rlhf_ray.models import fingerprint
from rlhf_ray.models.fingerprint import file_hashes


def make(folder: Path, *, changed: int | None = None) -> Path:
    """A model of 64 weights of 32 KiB; one of them can be another."""
    folder.mkdir()
    weights = {f"layer_{n}": numpy.zeros(2**13, "float32") for n in range(64)}
    if changed is not None:
        weights[f"layer_{changed}"] += 1e-6
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("layer", [0, 17, 40, 63])
def test_one_changed_weight_is_seen(tmp_path, layer):
    before = file_hashes(str(make(tmp_path / "before")))
    after = file_hashes(str(make(tmp_path / "after", changed=layer)))
    assert before["config.json"] == after["config.json"]
    assert before["model.safetensors"] != after["model.safetensors"]


@pytest.mark.parametrize("kind", [0, 1, 4, 11])
def test_a_changed_kind_of_weights_is_seen(tmp_path, kind):
    """One kind in every layer: a sample with a fixed stride would leave it out."""

    def make_layers(name: str, value: float) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        weights = {
            f"layers.{n}.{part}": numpy.full(2**8, value * (part == kind), "float32")
            for n in range(250)
            for part in range(12)
        }
        save_file(weights, folder / "model.safetensors")
        return folder

    before, after = make_layers("before", 0.0), make_layers("after", 1e-6)
    assert file_hashes(str(before)) != file_hashes(str(after))


def test_the_tokens_that_end_a_text_count(tmp_path):
    folder = make(tmp_path / "model")
    before = file_hashes(str(folder))
    file = folder / "generation_config.json"
    file.write_text('{"eos_token_id": 1, "temperature": 0.7}')
    one = file_hashes(str(folder))
    assert one != before
    file.write_text('{"eos_token_id": [1], "temperature": 0.9}')
    assert file_hashes(str(folder)) == one
    file.write_text('{"eos_token_id": [5, 1]}')
    assert file_hashes(str(folder)) != one


def test_a_copy_is_the_same_and_notes_do_not_count(tmp_path):
    folder = make(tmp_path / "model")
    before = file_hashes(str(folder))
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "README.md").write_text("a card")
    (copy / "generation_config.json").write_text("{}")
    (copy / ".cache").mkdir()
    assert file_hashes(str(copy)) == before
    (copy / "config.json").write_text('{"rope_theta": 1}')
    assert file_hashes(str(copy))["config.json"] != before["config.json"]


def test_files_of_torch_and_single_files(tmp_path):
    for name, value in (("a", 0.0), ("b", 1.0)):
        weights = {"first": torch.zeros(2**19), "last": torch.full((8,), value)}
        torch.save(weights, tmp_path / f"{name}.bin")
    one, other = (file_hashes(str(tmp_path / f"{name}.bin")) for name in "ab")
    assert one.keys() == {"a.bin"}
    assert one["a.bin"] != other["b.bin"]


def test_a_small_part_is_read(tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    save_file({f"w{n}": numpy.zeros(2**15, "float32") for n in range(512)}, file)
    counted = 0

    class Counting(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            nonlocal counted
            found = super().read(size)
            counted += len(found)
            return found

    monkeypatch.setattr(fingerprint.Path, "open", lambda self, *_, **__: Counting(self))
    file_hashes(str(tmp_path))
    assert 0 < counted < 3 * 2**20 < file.stat().st_size // 8


@pytest.mark.parametrize("content", [b"\xff" * 2**21, b"\x08" + b"\0" * 2**21])
def test_a_damaged_file_has_a_hash(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert len(file_hashes(str(tmp_path))["model.safetensors"]) == 16


def test_a_hub_name_has_the_commit_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert file_hashes("owner/name") == {}
    refs = tmp_path / "models--owner--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("0f1e\n")
    assert file_hashes("owner/name") == {"commit": "0f1e"}
