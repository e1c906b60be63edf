"""Files of slices: written piece by piece, and read by any number of ranks.

A rank writes `state_rank_00003_0000.safetensors`, `..._0001.safetensors` and so on, with an index
next to them. A file has at most about a gibibyte, so that neither writing nor reading needs more
host memory than that. safetensors files hold numbers alone: reading one runs no code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlhf_ray.checkpoint_files.slice_index import (
    SavedSlice,
    SavedTensor,
    SliceOverlap,
    index_file,
    key_of,
    overlaps,
    write_index,
)
from rlhf_ray.plain_files import DamagedFileError
from rlhf_ray.training.engine.state.state_parts import MOMENTS, StatePart

_FILE_BYTES = 1024**3
_MAX_NAMES = 3


def write_parts(folder: Path, prefix: str, rank: int, parts: Iterable[StatePart]) -> None:
    """Write one rank's share of the slices of a role, and their index.

    Args:
        parts: what this rank writes; see `own_share`. Values may be on any device. Parts without
            values are in the index alone.
    """
    stem = index_file(folder, prefix, rank).stem
    parts = list(parts)
    tensors = {part.name: _left_out(part) for part in parts if part.checksum is not None}
    for number, group in enumerate(_files(parts)):
        name = f"{stem}_{number:04d}.safetensors"
        content: dict[str, Tensor] = {}
        for part in group:
            for kind, value in part.values.items():
                content[key_of(kind, part.name, part.start)] = value.detach().to("cpu", copy=True)
            _note(tensors, part, name)
        save_file(content, folder / name)
    write_index(index_file(folder, prefix, rank), tensors)


@torch.no_grad()
def read_parts(folder: Path, saved: dict[str, SavedTensor], parts: Sequence[StatePart]) -> None:
    """Fill the slices that this rank holds, from the files of all ranks that wrote.

    Reads only what is wanted, each file once.

    Raises:
        ValueError: the checkpoint is of a model with other weights, or has not all of them.
        DamagedFileError: a file is truncated or of another kind.
    """
    _check_names(folder, saved, parts)
    by_file: dict[str, list[_Wanted]] = {}
    for part in parts:
        if not part.length:
            continue
        for overlap in overlaps(saved[part.name], part.name, part.start, part.length):
            for kind in _kinds(part, saved[part.name]):
                wanted = _Wanted(part=part, kind=kind, overlap=overlap)
                by_file.setdefault(overlap.piece.file, []).append(wanted)
    for file, wanted in sorted(by_file.items()):
        _read_file(folder / file, wanted)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wanted:
    part: StatePart
    kind: str
    overlap: SliceOverlap


def _files(parts: Iterable[StatePart]) -> Iterator[list[StatePart]]:
    """The parts of one file after the other; large ones are cut."""
    group: list[StatePart] = []
    size = 0
    for part in parts:
        for piece in _cut(part):
            needed = _bytes(piece)
            if group and size + needed > _FILE_BYTES:
                yield group
                group, size = [], 0
            group.append(piece)
            size += needed
    if group:
        yield group


def _cut(part: StatePart) -> Iterator[StatePart]:
    if not part.length:
        return
    pieces = -(-_bytes(part) // _FILE_BYTES)
    length = -(-part.length // pieces)
    for start in range(0, part.length, length):
        yield part.narrowed(start, min(length, part.length - start))


def _bytes(part: StatePart) -> int:
    return sum(value.numel() * value.element_size() for value in part.values.values())


def _left_out(part: StatePart) -> SavedTensor:
    return SavedTensor(
        shape=part.shape, kinds=frozenset(), step=part.step, pieces=(), checksum=part.checksum
    )


def _note(tensors: dict[str, SavedTensor], part: StatePart, file: str) -> None:
    before = tensors.get(part.name)
    pieces = before.pieces if before else ()
    tensors[part.name] = SavedTensor(
        shape=part.shape,
        kinds=frozenset(part.values),
        step=part.step,
        pieces=(*pieces, SavedSlice(start=part.start, length=part.length, file=file)),
    )


def _check_names(folder: Path, saved: dict[str, SavedTensor], parts: Sequence[StatePart]) -> None:
    missing = [part.name for part in parts if part.length and part.name not in saved]
    shapes = [
        f"{part.name} {list(saved[part.name].shape)} there, {list(part.shape)} here"
        for part in parts
        if part.name in saved and saved[part.name].shape != part.shape
    ]
    kinds = [
        f"{kind} of {part.name}"
        for part in parts
        if part.name in saved
        for kind in _kinds(part, saved[part.name])
        if kind not in saved[part.name].kinds
    ]
    moved = [
        f"{part.name} {'here' if part.step is not None else 'there'}"
        for part in parts
        if part.name in saved and (part.step is None) != (saved[part.name].step is None)
    ]
    problems = {
        "has no": missing,
        "has other shapes:": shapes,
        "trains other weights:": moved,
        "has not": kinds,
    }
    for words, names in problems.items():
        if names:
            raise ValueError(
                f"the checkpoint {folder} {words} {_listed(names)}; resume with its model, "
                f"training.freeze and training.lora, or start a new run from the saved model"
            )


def _kinds(part: StatePart, saved: SavedTensor) -> Iterator[str]:
    """The values of a part that are read. Before the first step moments are 0, and not saved."""
    return (kind for kind in part.values if saved.step != 0 or kind not in MOMENTS)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{', '.join(names[:_MAX_NAMES])}{more}"


def _read_file(path: Path, wanted: Sequence[_Wanted]) -> None:
    with open(path, "rb"):
        pass  # Whether it can be opened is known apart from whether it is whole.
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for one in wanted:
                _read(file, path, one)
    except SafetensorError as error:
        reason = str(error).strip().splitlines()[0]
        raise DamagedFileError(
            f"{path} cannot be read, it is truncated or overwritten: {reason}"
        ) from None


def _read(file: Any, path: Path, one: _Wanted) -> None:
    overlap, part = one.overlap, one.part
    found = file.get_slice(key_of(one.kind, part.name, overlap.piece.start))
    if found.get_shape() != [overlap.piece.length]:
        raise DamagedFileError(f"{path} and its index do not agree about {part.name}")
    values = found[overlap.in_piece : overlap.in_piece + overlap.length]
    target = part.values[one.kind].narrow(0, overlap.in_slice, overlap.length)
    if values.is_floating_point() != target.is_floating_point():
        raise ValueError(f"{path} has {part.name} in {values.dtype}, and not in {target.dtype}")
    target.copy_(values)
