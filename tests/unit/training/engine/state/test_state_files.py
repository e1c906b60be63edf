"""Files of slices: written by some ranks and read by others."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhf_ray.checkpoint_files.slice_index import read_indexes
from rlhf_ray.plain_files import DamagedFileError
from rlhf_ray.training.engine.state import state_files as files
from rlhf_ray.training.engine.state.state_files import read_parts, write_parts
from rlhf_ray.training.engine.state.state_parts import StatePart
from tests.unit.hostile_files import write_hostile_file

SHAPE = (7, 11)
SIZE = 77
WHOLE = {
    "weight": torch.arange(SIZE, dtype=torch.float32),
    "exp_avg": -torch.arange(SIZE, dtype=torch.float32),
}
SMALL = torch.tensor(5)


def part(start: int, end: int, *, values: dict[str, torch.Tensor] | None = None) -> StatePart:
    filled = {kind: value[start:end].clone() for kind, value in (values or WHOLE).items()}
    return StatePart(name="w", shape=SHAPE, start=start, values=filled, step=2)


def empty(start: int, end: int) -> StatePart:
    return part(start, end, values={kind: torch.zeros(SIZE) for kind in WHOLE})


def counter(value: torch.Tensor) -> StatePart:
    return StatePart(name="count", shape=(), start=0, values={"weight": value.view(-1)})


def written(folder: Path, *cuts: int) -> None:
    """Parts of one rank each, between neighbouring cuts."""
    for rank, (start, end) in enumerate(itertools.pairwise(cuts)):
        others = [counter(SMALL)] if rank == 0 else []
        write_parts(folder, "state", rank, [part(start, end), *others])


@pytest.mark.parametrize("limit", [files._FILE_BYTES, 64])
@pytest.mark.parametrize("cuts", [(0, SIZE), (0, 30, 60, SIZE), (0, 0, 5, 76, SIZE)])
@pytest.mark.parametrize("others", [(0, SIZE), (0, 40, SIZE), (0, 1, 33, 33, SIZE)])
def test_other_ranks_read_what_was_written(tmp_path, monkeypatch, limit, cuts, others):
    monkeypatch.setattr(files, "_FILE_BYTES", limit)
    written(tmp_path, *cuts)
    saved = read_indexes(tmp_path, "state", len(cuts) - 1)
    for start, end in itertools.pairwise(others):
        found, count = empty(start, end), torch.tensor(0)
        read_parts(tmp_path, saved, [found, counter(count)])
        for kind, value in found.values.items():
            assert torch.equal(value, WHOLE[kind][start:end])
        assert count == 5
    sizes = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    if limit == 64:
        assert len(sizes) >= 10
        assert max(sizes) < 64 + 1024  # With the header.


def test_a_rank_reads_only_the_files_of_its_slices(tmp_path):
    written(tmp_path, 0, 30, 60, SIZE)
    saved = read_indexes(tmp_path, "state", 3)
    (tmp_path / "state_rank_00000_0000.safetensors").unlink()
    (tmp_path / "state_rank_00002_0000.safetensors").unlink()
    found = empty(30, 60)
    read_parts(tmp_path, saved, [found])
    assert torch.equal(found.values["weight"], WHOLE["weight"][30:60])
    with pytest.raises(FileNotFoundError):
        read_parts(tmp_path, saved, [empty(29, 60)])


@pytest.mark.parametrize("damage", ["truncated", "empty", "overwritten", "code"])
def test_damage_is_a_sentence_and_no_code_runs(tmp_path, damage):
    written(tmp_path, 0, SIZE)
    saved = read_indexes(tmp_path, "state", 1)
    path, ran = tmp_path / "state_rank_00000_0000.safetensors", tmp_path / "ran"
    whole = path.read_bytes()
    if damage == "code":
        write_hostile_file(path, f"touch {ran}")
    else:
        content = {"truncated": whole[:-4], "empty": b"", "overwritten": b"\xff" * len(whole)}
        path.write_bytes(content[damage])
    with pytest.raises(DamagedFileError, match="it is truncated or overwritten") as found:
        read_parts(tmp_path, saved, [empty(0, SIZE)])
    assert str(path) in str(found.value)
    assert "\n" not in str(found.value)
    assert not ran.exists()


def test_an_index_of_another_file_is_refused(tmp_path):
    written(tmp_path, 0, SIZE)
    saved = read_indexes(tmp_path, "state", 1)
    written(tmp_path, 0, 70)
    with pytest.raises(DamagedFileError, match="its index do not agree about w"):
        read_parts(tmp_path, saved, [empty(0, SIZE)])


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (StatePart(name="v", shape=(1,), start=0, values={"weight": torch.zeros(1)}), "has no v"),
        (
            StatePart(name="w", shape=(11, 7), start=0, values={"weight": torch.zeros(77)}, step=2),
            r"has other shapes: w \[7, 11\] there, \[11, 7\] here",
        ),
        (
            StatePart(
                name="w",
                shape=SHAPE,
                start=0,
                values={"weight": torch.zeros(77), "exp_avg_sq": torch.zeros(77)},
                step=2,
            ),
            "has not exp_avg_sq of w",
        ),
        (
            StatePart(name="w", shape=SHAPE, start=0, values={"weight": torch.zeros(77)}),
            "trains other weights: w there",
        ),
    ],
)
def test_another_model_is_refused_before_anything_is_read(tmp_path, wanted, words):
    written(tmp_path, 0, SIZE)
    saved = read_indexes(tmp_path, "state", 1)
    with pytest.raises(ValueError, match=words) as found:
        read_parts(tmp_path, saved, [wanted])
    assert "resume with its model, training.freeze and training.lora" in str(found.value)
    assert not wanted.values["weight"].any()


def test_a_weight_that_was_never_moved_has_no_moments(tmp_path):
    """At stage 0 an unused weight has no state; an optimizer of whole vectors has zeros."""
    values = {"weight": WHOLE["weight"]}
    unmoved = StatePart(name="w", shape=SHAPE, start=0, values=values, step=0)
    write_parts(tmp_path, "state", 0, [unmoved])
    found = replace(empty(0, SIZE), step=3)
    read_parts(tmp_path, read_indexes(tmp_path, "state", 1), [found])
    assert torch.equal(found.values["weight"], WHOLE["weight"])
    assert not found.values["exp_avg"].any()
