"""Files of tensors: no code runs, damage is said in a sentence, and all reading is in one place."""

from __future__ import annotations

import ast
import io
from collections import Counter
from pathlib import Path

import pytest
import torch

from rlhf_ray.plain_files import DamagedFileError, UnsafeFileError, load_plain
from rlhf_ray.records.files import load_records
from rlhf_ray.training.engine.checkpoint import read_earlier_parts, read_random_states
from tests.unit.hostile_files import write_hostile_file, write_hostile_pickle

PACKAGE = Path(__file__).parents[2] / "rlhf_ray"
DATA = {"a": torch.arange(6.0).view(2, 3), "b": [1, 2.5, "text", None, (True,)]}


@pytest.mark.parametrize("write", [write_hostile_file, write_hostile_pickle])
def test_code_in_a_file_is_refused_and_does_not_run(tmp_path, write):
    path, ran = tmp_path / "file.pt", tmp_path / "ran"
    write(path, f"touch {ran}")
    with pytest.raises(UnsafeFileError, match=r"posix\.system, which could run code") as refused:
        load_plain(path)
    assert not ran.exists()
    assert str(path) in str(refused.value)
    assert "weights_only" not in str(refused.value)


def test_the_hostile_file_would_run_where_it_is_read_without_care(tmp_path):
    path, ran = tmp_path / "file.pt", tmp_path / "ran"
    write_hostile_file(path, f"touch {ran}")
    torch.load(path, weights_only=False)
    assert ran.exists()


@pytest.mark.parametrize("read", [read_earlier_parts, load_records])
def test_every_reader_refuses_code(tmp_path, read):
    path, ran = tmp_path / "file.pt", tmp_path / "ran"
    write_hostile_file(path, f"touch {ran}")
    with pytest.raises(UnsafeFileError):
        read(path)
    assert not ran.exists()


def test_random_states_refuse_code(tmp_path):
    write_hostile_file(tmp_path / "random_rank_00003.pt", f"touch {tmp_path / 'ran'}")
    with pytest.raises(UnsafeFileError):
        read_random_states(tmp_path, 3, 4)
    assert not (tmp_path / "ran").exists()


def test_data_is_read(tmp_path):
    torch.save(DATA, tmp_path / "file.pt")
    found = load_plain(tmp_path / "file.pt")
    assert torch.equal(found["a"], DATA["a"])
    assert found["b"] == DATA["b"]


def test_named_classes_are_read_and_only_in_their_own_call(tmp_path):
    torch.save({"a": Counter("aab"), "b": io.StringIO}, tmp_path / "file.pt")
    found = load_plain(tmp_path / "file.pt", classes=(Counter, io.StringIO))
    assert found["a"] == Counter("aab")
    with pytest.raises(UnsafeFileError, match=r"StringIO"):
        load_plain(tmp_path / "file.pt")


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "empty", "text", "cut_directory"])
def test_damage_is_a_sentence(tmp_path, damage):
    path = tmp_path / "file.pt"
    torch.save({"weight": torch.arange(1000.0)}, path)
    whole = path.read_bytes()
    content = {
        "truncated": whole[: len(whole) // 2],
        "overwritten": b"\0" * len(whole),
        "empty": b"",
        "text": b"not a checkpoint",
        "cut_directory": whole[:-10],
    }
    path.write_bytes(content[damage])
    with pytest.raises(DamagedFileError, match=r"cannot be read, it is truncated or") as found:
        load_plain(path)
    assert str(path) in str(found.value)
    assert "weights_only" not in str(found.value)
    assert "\n" not in str(found.value)


def test_a_missing_file_stays_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_plain(tmp_path / "nothing.pt")


def _unsafe_readers(tree: ast.Module) -> list[str]:
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [name for name in calls if name in ("torch.load", "np.load", "numpy.load")]


def test_tensor_files_are_read_in_one_place():
    found = {
        str(file.relative_to(PACKAGE)): names
        for file in PACKAGE.rglob("*.py")
        if (names := _unsafe_readers(ast.parse(file.read_text(encoding="utf-8"))))
    }
    # Weights of a model, mapped, and its headers, on no device; neither runs code (weights_only).
    weights = {"models/checks/weight_files.py": ["torch.load"] * 2}
    assert found == {"plain_files.py": ["torch.load"]} | weights
    text = (PACKAGE / "models/checks/weight_files.py").read_text(encoding="utf-8")
    assert text.count(", weights_only=True, mmap=True)") == 2


def test_pickles_are_read_only_from_own_processes():
    """The child of a reward worker, the learner's handles of memory, own trees: never a file."""
    readers = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("pickle.load", "pickle.loads", "cloudpickle.loads")
    }
    assert readers == {
        "config/convert.py",
        "publish/device_memory.py",
        "rewards/functions/runner.py",
    }
