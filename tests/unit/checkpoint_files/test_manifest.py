"""The manifest of a checkpoint: shares of ranks, sizes, hashes, and its own file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import xxhash

from rlhf_ray.checkpoint_files import manifest as module
from rlhf_ray.checkpoint_files.manifest import (
    FileSeal,
    Manifest,
    files_below,
    hash_problems,
    listed,
    seal_file,
    seal_share,
    size_problems,
)

# The names that ranks 0 and 1 write, in this release and in those before.
NAMES = {
    0: (
        "engine/mp_rank_00_model_states.pt",
        "engine/zero_pp_rank_0_mp_rank_00_model_states.pt",
        "engine/zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "engine/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "state_rank_00000.json",
        "state_rank_00000_0000.safetensors",
        "average_rank_00000.pt",
        "moving_rank_00000.pt",
        "latest_answers_0.pt",
        "random_rank_00000.pt",
        "role.json",
        "zero_to_fp32.py",
    ),
    1: (
        "engine/zero_pp_rank_1_mp_rank_00_model_states.pt",
        "engine/zero_pp_rank_1_mp_rank_00_optim_states.pt",
        "engine/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
        "state_rank_00001.json",
        "state_rank_00001_0000.safetensors",
        "average_rank_00001.pt",
        "moving_rank_00001.pt",
        "latest_answers_1.pt",
        "random_rank_00001.pt",
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "engine").mkdir()
    for names in NAMES.values():
        for name in names:
            (tmp_path / name).write_text(f"content of {name}")
    return tmp_path


def test_every_rank_seals_what_it_wrote_and_all_together_everything(folder):
    shares = [seal_share(folder, rank=rank, world_size=2) for rank in (0, 1)]
    assert [sorted(share) for share in shares] == [sorted(NAMES[0]), sorted(NAMES[1])]
    assert sorted([*shares[0], *shares[1]]) == sorted(files_below(folder))


def test_files_that_another_rank_has_only_begun_are_left_alone(folder):
    (folder / ".tmp5fhG5O").write_text("half of a shard")
    assert sorted(seal_share(folder, rank=0, world_size=2)) == sorted(NAMES[0])


@pytest.mark.parametrize("world_size", [1, 3])
def test_no_file_is_left_out_with_other_numbers_of_ranks(folder, world_size):
    shares = [seal_share(folder, rank=rank, world_size=world_size) for rank in range(world_size)]
    names = [name for share in shares for name in share]
    assert sorted(names) == sorted(files_below(folder))


@pytest.mark.parametrize("size", [0, 1, 1000, 2500])
def test_a_seal_is_size_and_hash_of_the_whole_content(tmp_path, monkeypatch, size):
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1000)
    content = hashlib.shake_128(b"x").digest(size)
    (tmp_path / "file").write_bytes(content)
    expected = FileSeal(size=size, digest=xxhash.xxh3_128(content).hexdigest())
    assert seal_file(tmp_path / "file") == expected
    assert seal_file(tmp_path / "file", sync=True) == expected


def test_sizes(folder):
    files = seal_share(folder, rank=0, world_size=1)
    assert size_problems(folder, files) == []
    (folder / "role.json").write_text("x")
    (folder / "random_rank_00001.pt").unlink()
    (folder / "zero_to_fp32.py").unlink()
    (folder / "zero_to_fp32.py").mkdir()
    assert size_problems(folder, files) == [
        "random_rank_00001.pt is missing",
        "role.json has 1 bytes, and had 20 when it was written",
        "zero_to_fp32.py is missing",
    ]


def test_hashes(folder):
    files = seal_share(folder, rank=0, world_size=1)
    assert hash_problems(files, files) == []
    (folder / "role.json").write_text("Content of role.json")
    found = seal_share(folder, rank=0, world_size=1)
    del found["random_rank_00001.pt"]
    assert size_problems(folder, files) == []
    assert hash_problems(files, found) == [
        "random_rank_00001.pt is missing",
        "role.json has changed since it was written",
    ]


def test_the_text_reads_back(folder):
    manifest = Manifest(files=seal_share(folder, rank=0, world_size=1))
    assert Manifest.from_text(manifest.to_text()) == manifest
    assert sorted(manifest.below("engine")) == sorted(
        path.name for path in (folder / "engine").iterdir()
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '{"files": {}}',
        '{"hash": "xxh3_128"}',
        '{"hash": "xxh3_128", "files": []}',
        '{"hash": "xxh3_128", "files": {"a": 3}}',
        '{"hash": "xxh3_128", "files": {"a": ["x", "y"]}}',
        '{"hash": "xxh3_128", "files": {"a": [1e400, "y"]}}',
        '{"hash": "xxh3_128", "files": {"a\\u0000": [1, "y"]}}',
        '{"hash": "xxh3_128", "files": {"\\ud800": [1, "y"]}}',
        '{"hash": "md5", "files": {}}',
        "[" * 100_000,
    ],
)
def test_another_text_is_refused(text):
    with pytest.raises(ValueError, match=r"no manifest|this release knows"):
        Manifest.from_text(text)


def test_a_list_of_problems_is_short():
    assert listed(["a", "b"]) == "a, b"
    assert listed(list("abcde")) == "a, b, c, and 2 more"
