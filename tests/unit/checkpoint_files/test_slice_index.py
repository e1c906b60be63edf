"""The index of slices: what makes up a slice, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_ray.checkpoint_files.slice_index import (
    NUM_SUMS,
    SavedSlice,
    SavedTensor,
    index_file,
    overlaps,
    read_indexes,
    write_index,
)

KINDS = frozenset({"weight", "exp_avg"})


def tensor(*pieces: tuple[int, int], step: int = 3, rank: int = 0) -> SavedTensor:
    file = f"state_rank_{rank:05d}_0000.safetensors"
    return SavedTensor(
        shape=(4, 5),
        kinds=KINDS,
        step=step,
        pieces=tuple(SavedSlice(start=start, length=length, file=file) for start, length in pieces),
    )


def write(folder: Path, rank: int, tensors: dict[str, SavedTensor]) -> Path:
    path = index_file(folder, "state", rank)
    write_index(path, tensors)
    return path


def change(path: Path, **values: object) -> None:
    content = json.loads(path.read_text())
    content["tensors"]["w"].update(values)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("start", range(20))
def test_every_slice_is_made_of_its_elements(start):
    whole = list(range(20))
    parts = tensor((13, 7), (0, 6), (6, 7))
    for length in range(20 - start + 1):
        found = [-1] * length
        for one in overlaps(parts, "w", start, length):
            first = one.piece.start + one.in_piece
            assert one.in_piece + one.length <= one.piece.length
            found[one.in_slice : one.in_slice + one.length] = whole[first : first + one.length]
        assert found == whole[start : start + length]


def test_only_the_pieces_of_a_slice_are_read():
    parts = tensor((0, 6), (6, 7), (13, 7))
    assert [one.piece.start for one in overlaps(parts, "w", 6, 7)] == [6]
    assert [one.piece.start for one in overlaps(parts, "w", 5, 2)] == [0, 6]
    assert list(overlaps(parts, "w", 20, 0)) == []


@pytest.mark.parametrize(
    ("pieces", "first"), [([(0, 6), (7, 13)], 6), ([(0, 19)], 19), ([(1, 19)], 0), ([], 0)]
)
def test_a_gap_is_refused(pieces, first):
    with pytest.raises(ValueError, match=f"elements from {first} on of w: it is incomplete"):
        list(overlaps(tensor(*pieces), "w", 0, 20))


def test_indexes_of_all_ranks_are_read_as_one(tmp_path):
    write(tmp_path, 0, {"w": tensor((0, 10)), "only": tensor((0, 20))})
    write(tmp_path, 1, {"w": tensor((10, 10), rank=1)})
    found = read_indexes(tmp_path, "state", 2)
    assert found["only"] == tensor((0, 20))
    assert [piece.start for piece in found["w"].pieces] == [0, 10]
    assert found["w"].pieces[1].file == "state_rank_00001_0000.safetensors"


def test_ranks_that_do_not_agree_are_refused(tmp_path):
    write(tmp_path, 0, {"w": tensor((0, 10))})
    write(tmp_path, 1, {"w": tensor((10, 10), step=4, rank=1)})
    with pytest.raises(ValueError, match="do not agree about w"):
        read_indexes(tmp_path, "state", 2)


def left_out(checksum: int | None) -> SavedTensor:
    return SavedTensor(shape=(4, 5), kinds=frozenset(), step=None, pieces=(), checksum=checksum)


def test_sums_of_all_ranks_are_one_sum(tmp_path):
    """Releases that know no sums refuse an index with some, and read one without."""
    last = NUM_SUMS - 1
    paths = [write(tmp_path, rank, {"w": left_out(last)}) for rank in range(3)]
    assert read_indexes(tmp_path, "state", 3) == {"w": left_out(NUM_SUMS - 3)}
    assert {json.loads(path.read_text())["format"] for path in paths} == {2}
    assert json.loads(write(tmp_path, 0, {"w": tensor((0, 20))}).read_text())["format"] == 1
    with pytest.raises(ValueError, match="no file has the elements from 0 on of w"):
        list(overlaps(left_out(5), "w", 0, 20))


def test_a_sum_and_no_sum_do_not_agree(tmp_path):
    write(tmp_path, 0, {"w": left_out(0)})
    write(tmp_path, 1, {"w": left_out(None)})
    with pytest.raises(ValueError, match="do not agree about w"):
        read_indexes(tmp_path, "state", 2)


def test_a_missing_index_is_named(tmp_path):
    write(tmp_path, 0, {})
    with pytest.raises(ValueError, match=r"state_rank_00001\.json is missing"):
        read_indexes(tmp_path, "state", 2)


@pytest.mark.parametrize(
    "values",
    [
        {"pieces": [[0, 20, "../../secret"]]},
        {"pieces": [[0, 20, "state_rank_00000/../x"]]},
        {"pieces": [[0, 20, "state_rank_00001_0000.safetensors"]]},
        {"pieces": [[-1, 20, "state_rank_00000_0000.safetensors"]]},
        {"pieces": [[0, True, "state_rank_00000_0000.safetensors"]]},
        {"pieces": [[0, 20]]},
        {"pieces": 3},
        {"shape": [4, "5"]},
        {"step": 1.5},
        {"kinds": None},
        {"checksum": -1},
        {"checksum": "1"},
    ],
)
def test_a_damaged_index_is_a_sentence(tmp_path, values):
    path = write(tmp_path, 0, {"w": tensor((0, 20))})
    change(path, **values)
    with pytest.raises(ValueError, match=r"state_rank_00000\.json is damaged") as found:
        read_indexes(tmp_path, "state", 1)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", '{"format": 3, "tensors": {}}', "[" * 9999]
)
def test_a_file_that_is_no_index_is_a_sentence(tmp_path, text):
    index_file(tmp_path, "state", 0).write_text(text)
    with pytest.raises(ValueError, match=r"state_rank_00000\.json is damaged"):
        read_indexes(tmp_path, "state", 1)
