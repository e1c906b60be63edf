"""The index of a rank's slices in a checkpoint: which part of which tensor is in which file.

Tensors are known by their names in the model, and slices by their place in the flattened tensor.
Neither depends on the number of ranks or on the ZeRO stage, so that a role with another layout
reads from all files the slices that it needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Of indexes in which every tensor has its pieces, and of those in which some have a sum instead.
_FORMATS = (1, 2)
# Sums are below this number.
NUM_SUMS = 2**64


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedSlice:
    """A slice of a flattened tensor in a file.

    Attributes:
        start: index of its first element in the tensor.
        file: name of the file, in the folder of the index.
    """

    start: int
    length: int
    file: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedTensor:
    """A tensor of a checkpoint, as far as one rank has written it, or all ranks.

    Attributes:
        shape: of the whole tensor.
        kinds: values that every piece has: `weight`, and moments of the optimizer.
        step: optimiser steps behind the moments; 0 before the first, when there are no moments;
            None of a tensor that no optimizer moves.
        checksum: of a tensor without pieces, the sum over its values, or over one rank's share.
    """

    shape: tuple[int, ...]
    kinds: frozenset[str]
    step: int | None
    pieces: tuple[SavedSlice, ...]
    checksum: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceOverlap:
    """The part of a piece that is in a wanted slice.

    Attributes:
        in_piece: index of the first element in the piece.
        in_slice: index of the first element in the wanted slice.
    """

    piece: SavedSlice
    in_piece: int
    in_slice: int
    length: int


def key_of(kind: str, name: str, start: int) -> str:
    """The name of a piece's values in its file."""
    return f"{kind}:{start}:{name}"


def index_file(folder: Path, prefix: str, rank: int) -> Path:
    """The index of a rank."""
    return folder / f"{prefix}_rank_{rank:05d}.json"


def write_index(path: Path, tensors: Mapping[str, SavedTensor]) -> None:
    """Write the index of a rank's pieces."""
    content = {
        name: {
            "shape": list(tensor.shape),
            "kinds": sorted(tensor.kinds),
            "step": tensor.step,
            "pieces": [[piece.start, piece.length, piece.file] for piece in tensor.pieces],
            **({} if tensor.checksum is None else {"checksum": tensor.checksum}),
        }
        for name, tensor in tensors.items()
    }
    has_sums = any(tensor.checksum is not None for tensor in tensors.values())
    text = json.dumps({"format": _FORMATS[has_sums], "tensors": content})
    path.write_text(text + "\n", encoding="utf-8")


def read_indexes(folder: Path, prefix: str, num_ranks: int) -> dict[str, SavedTensor]:
    """Read the indexes of all ranks that wrote a checkpoint, as one.

    Raises:
        ValueError: one is missing or damaged, or two do not belong together.
    """
    parts = [_read_index(index_file(folder, prefix, rank)) for rank in range(num_ranks)]
    merged: dict[str, SavedTensor] = {}
    for part in parts:
        for name, tensor in part.items():
            before = merged.get(name)
            if before is None:
                merged[name] = tensor
            else:
                merged[name] = _joined(folder, name, before, tensor)
    return merged


def overlaps(tensor: SavedTensor, name: str, start: int, length: int) -> Iterator[SliceOverlap]:
    """The parts of pieces that make up a slice, in order and without gaps.

    Raises:
        ValueError: the pieces do not have all of the slice.
    """
    place, end = start, start + length
    for piece in sorted(tensor.pieces, key=lambda piece: piece.start):
        if place >= end:
            return
        stop = min(end, piece.start + piece.length)
        if stop <= place:
            continue
        if piece.start > place:
            break
        yield SliceOverlap(
            piece=piece,
            in_piece=place - piece.start,
            in_slice=place - start,
            length=stop - place,
        )
        place = stop
    if place < end:
        raise ValueError(f"no file has the elements from {place} on of {name}: it is incomplete")


def _joined(folder: Path, name: str, one: SavedTensor, other: SavedTensor) -> SavedTensor:
    if _common(one) != _common(other):
        raise ValueError(f"the ranks that wrote {folder} do not agree about {name}: it is damaged")
    sums = None if one.checksum is None else (one.checksum + (other.checksum or 0)) % NUM_SUMS
    return replace(one, pieces=one.pieces + other.pieces, checksum=sums)


def _common(tensor: SavedTensor) -> tuple[Any, ...]:
    """The values that the shares of all ranks have in common."""
    return tensor.shape, tensor.kinds, tensor.step, tensor.checksum is None


def _read_index(path: Path) -> dict[str, SavedTensor]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] not in _FORMATS:
            known = " and ".join(map(str, _FORMATS))
            raise ValueError(f"its format is {content['format']!r}, and this release reads {known}")
        return {
            str(name): _tensor(values, path.name) for name, values in content["tensors"].items()
        }
    except OSError as error:
        raise ValueError(
            f"{path} is missing: the checkpoint of this role is incomplete "
            f"({error.strerror or error})"
        ) from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _tensor(values: Mapping[str, Any], own_name: str) -> SavedTensor:
    shape = tuple(_count(size) for size in values["shape"])
    checksum = values.get("checksum")
    return SavedTensor(
        shape=shape,
        kinds=frozenset(str(kind) for kind in values["kinds"]),
        step=None if values["step"] is None else _count(values["step"]),
        pieces=tuple(_pieces(values["pieces"], own_name)),
        checksum=None if checksum is None else _count(checksum),
    )


def _pieces(rows: Iterable[Sequence[Any]], own_name: str) -> Iterator[SavedSlice]:
    for start, length, file in rows:
        # A name of another folder would make a rank read what is no part of the checkpoint.
        if not isinstance(file, str) or not file.startswith(own_name.removesuffix(".json")):
            raise ValueError(f"{file!a} is no file of this rank")
        if "/" in file or "\\" in file or not file.isprintable():
            raise ValueError(f"{file!a} is no name of a file")
        yield SavedSlice(start=_count(start), length=_count(length), file=file)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
