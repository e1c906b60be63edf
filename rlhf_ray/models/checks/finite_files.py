"""Weight files with numbers that are not finite: read as a stream, before each engine does.

An engine loads such weights without a word, and answers with token 0 or garbage for ever. Every
file is read whole, at the pace of the disk: a 72B model (145 GB) takes 25 to 150 s at 6 to 1 GB/s
on each node with an engine, and lies in the page cache afterwards, from which the engine then loads
it, as far as there is memory. Looking at the numbers takes 0.26 s of one core for a gibibyte, on up
to four threads.
"""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.keys.unread import first_names
from rlhf_ray.models.checks.finite import has_no_nan, is_finite
from rlhf_ray.models.checks.weight_files import pickled_weights

_INDEX = "model.safetensors.index.json"
_CHUNK_BYTES = 2**26
_THREADS = 4
_FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# Formats of a byte, in which torch computes no extremes: the bits that are all set in a number that
# is NaN or infinite.
_BYTE_FLOATS = {"F8_E4M3": 0x7F, "F8_E5M2": 0x7C}
# Other tensors of a file may be masks, which may be infinite.
_WEIGHTS = (".weight", ".bias")
# What a damaged file makes of its readers; `check_weights` and the engine's own loading name it.
_DAMAGED = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    EOFError,
    struct.error,
    pickle.UnpicklingError,
)


def check_weight_files(path: str, *, key: str = "model.path") -> None:
    """Refuse a folder with a weight file that holds NaN, or a weight that is infinite.

    Nothing is said of a hub name, nor of files that cannot be read: loading says what is wrong.

    Args:
        key: dotted name of the setting with the path.

    Raises:
        RequestError: names the files and the weights.
    """
    files = _weight_files(Path(path).expanduser())
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        found = dict(zip(files, pool.map(_not_finite_in, files), strict=True))
    bad = {file.name: names for file, names in found.items() if names}
    if bad:
        shown = "; ".join(f"{file}: {first_names(names)}" for file, names in bad.items())
        raise RequestError(
            f"{key} is {path!r}: its weight files hold NaN or infinite numbers ({shown}), so that "
            f"every answer would be garbage; copy the files again, or take the model of an earlier "
            f"step"
        )


def _weight_files(folder: Path) -> list[Path]:
    """The files that vLLM reads the weights of a folder from; none for a hub name."""
    if not folder.is_dir():
        return []
    files = sorted(folder.glob("*.safetensors"))
    try:
        named = set(
            json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        )
        files = [file for file in files if file.name in named] or files
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass  # There is no index, or none that can be read: vLLM reads all files then.
    return files or sorted(folder.glob("pytorch_model*.bin"))


def _not_finite_in(file: Path) -> list[str]:
    """Names of the weights of a file that are not finite; none where it cannot be read."""
    walk = _of_safetensors if file.suffix == ".safetensors" else _of_pickle
    found: dict[str, None] = {}
    try:
        for name, is_fine in walk(file):
            if not is_fine:
                found[name] = None
    except _DAMAGED:
        return []
    return list(found)


def _of_safetensors(file: Path) -> Iterator[tuple[str, bool]]:
    """Name and soundness of every piece of every weight, in the order of the file.

    Read and not mapped: a mapping of 145 GB is refused where memory is not overcommitted.
    """
    buffer = bytearray(_CHUNK_BYTES)
    with file.open("rb", buffering=0) as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        if length > file.stat().st_size:
            return
        header: Mapping[str, Any] = json.loads(opened.read(length))
        for name, entry in header.items():
            if name == "__metadata__" or entry["dtype"] not in {*_FLOATS, *_BYTE_FLOATS}:
                continue
            start, end = entry["data_offsets"]
            opened.seek(8 + length + start)
            while start < end:
                view = memoryview(buffer)[: min(_CHUNK_BYTES, end - start)]
                if opened.readinto(view) != len(view):  # A file that was cut off.
                    return
                start += len(view)
                yield name, _is_sound(name, entry["dtype"], view)


def _is_sound(name: str, dtype: str, piece: memoryview) -> bool:
    if dtype in _FLOATS:
        return _allowed(name, torch.frombuffer(piece, dtype=_FLOATS[dtype]))
    bits = _BYTE_FLOATS[dtype]
    return not bool(((torch.frombuffer(piece, dtype=torch.uint8) & bits) == bits).any())


def _of_pickle(file: Path) -> Iterator[tuple[str, bool]]:
    for name, weight in pickled_weights(file).items():
        if isinstance(weight, Tensor) and weight.is_floating_point() and weight.itemsize > 1:
            yield name, _allowed(name, weight)


def _allowed(name: str, weight: Tensor) -> bool:
    return is_finite(weight) if name.endswith(_WEIGHTS) else has_no_nan(weight)
