"""The weight files of a model's folder: names and shapes from their headers alone.

The headers of a 72B model, in 37 files, take milliseconds. A file that is damaged is refused here
and not by a worker, a minute later, in the words of a library.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rlhf_ray.config.errors import RequestError
from rlhf_ray.models.checks.present import WEIGHT_FILES, no_weights

_WHOLE = ("model.safetensors", "pytorch_model.bin")
# First bytes of the archives that `torch.save` writes, and of the pickles that it wrote before
# 2020, whose names cannot be read without reading all of them.
_ARCHIVE, _OLD_PICKLE = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MAX_SHOWN = 5
_ROWS_AT_ONCE = 8192

# Number formats by their names in safetensors; others are no weights, either.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "BOOL": torch.bool,
}


def read_headers(folder: Path, key: str, *, any_name: bool = False) -> dict[str, Tensor] | None:
    """The weights of a folder by name, as tensors with a shape and without content.

    Args:
        key: dotted name of the setting with the folder.
        any_name: take all safetensors files where none has a name that transformers reads, as
            vLLM does.

    Returns:
        None for files in an old format without a header.

    Raises:
        RequestError: weights are missing, a file is damaged or a pickle with more than weights, or
            the index names files outside of the folder.
    """
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    about = f"{key} is {str(folder)!r}"
    others = sorted(folder.glob("*.safetensors")) if any_name else []
    if found is None and not others:
        raise no_weights(folder, key)
    if found is None:
        return _all_of(others, about)
    if found.name in _WHOLE:
        return _header(found, about)
    by_file = _read_index(found, about)
    weights = _all_of([folder / name for name in by_file], about)
    if weights is None:
        return None
    lost = [name for names in by_file.values() for name in names if name not in weights]
    if lost:
        raise RequestError(
            f"{about}: {found.name} names weights that its files do not have: {_shown(lost)}; "
            f"index and files are not of one model: copy them again"
        )
    return weights


def files_of_index(index: Path, about: str) -> list[str]:
    """The files that an index names, by their path below the folder.

    Raises:
        RequestError: it cannot be read, or names files outside of the folder.
    """
    return list(_read_index(index, about))


def header_of(file: Path, about: str) -> dict[str, Tensor]:
    """The weights of one safetensors file, as tensors with a shape and without content.

    Raises:
        RequestError: the file is damaged.
    """
    return _header(file, about) or {}


def have_same_values(folder: Path, one: str, other: str, about: str) -> bool:
    """Whether two weights of a folder are the same; True for an old format without names.

    Rows are read some at a time: such matrices have gigabytes.
    """
    first, second = (_place_of(folder, name, about) for name in (one, other))
    if first is None or second is None:
        return True
    if first.suffix != ".safetensors":
        return torch.equal(pickled_weights(first)[one], pickled_weights(second)[other])
    with safe_open(first, framework="pt") as of_one, safe_open(second, framework="pt") as of_other:
        mine, others = of_one.get_slice(one), of_other.get_slice(other)
        if mine.get_shape() != others.get_shape():
            return False
        rows = range(0, mine.get_shape()[0], _ROWS_AT_ONCE)
        pairs = ((mine[r : r + _ROWS_AT_ONCE], others[r : r + _ROWS_AT_ONCE]) for r in rows)
        return all(torch.equal(a, b) for a, b in pairs)


def _place_of(folder: Path, name: str, about: str) -> Path | None:
    """The file with a weight, of those that transformers reads."""
    found = next((folder / each for each in WEIGHT_FILES if (folder / each).is_file()), None)
    if found is None or found.name in _WHOLE:
        return found
    by_file = _read_index(found, about)
    return next((folder / file for file, names in by_file.items() if name in names), None)


def pickled_weights(file: Path) -> Mapping[str, Tensor]:
    """The weights of a `.bin` file, mapped and not read; it can run no code."""
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def _all_of(files: Sequence[Path], about: str) -> dict[str, Tensor] | None:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise RequestError(
            f"{about}: {len(missing)} of its {len(files)} weight files are missing: "
            f"{_shown(missing)}; copy them again"
        )
    weights: dict[str, Tensor] = {}
    for file in files:
        header = _header(file, about)
        if header is None:
            return None
        weights |= header
    return weights


def _read_index(index: Path, about: str) -> dict[str, list[str]]:
    """The names of the weights of every file, by its path below the folder."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(
            f"{about}: {index.name} cannot be read: {error}; copy it again"
        ) from error
    places = content.get("weight_map") if isinstance(content, Mapping) else None
    is_map = isinstance(places, Mapping) and all(isinstance(v, str) for v in places.values())
    if not is_map or not places:
        raise RequestError(
            f"{about}: {index.name} has no weight_map of weights to files; copy it again"
        )
    by_file: dict[str, list[str]] = {}
    for name, file in places.items():
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts:
            raise RequestError(
                f"{about}: {index.name} takes {name} from {file!r}, outside of the folder, which "
                f"is never read; take a model whose files lie in its folder"
            )
        by_file.setdefault(file, []).append(name)
    return by_file


def _header(file: Path, about: str) -> dict[str, Tensor] | None:
    if file.suffix != ".safetensors":
        return _pickle_header(file, about)
    try:
        # As numpy: for torch the whole file is mapped as memory that may be written, which a
        # machine with less memory than the file refuses.
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            forms = {name: (each.get_shape(), each.get_dtype()) for name, each in slices.items()}
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size
        raise RequestError(
            f"{about}: {file.name} ({size:,} bytes) is damaged or incomplete: {error}; "
            f"copy it again"
        ) from error
    return {
        name: torch.empty(shape, dtype=_DTYPES.get(dtype, torch.uint8), device="meta")
        for name, (shape, dtype) in forms.items()
    }


def _pickle_header(file: Path, about: str) -> dict[str, Tensor] | None:
    """Names and shapes of a file of `torch.save`; its content stays on the disk."""
    with file.open("rb") as opened:
        start = opened.read(len(_OLD_PICKLE))
    if start == _OLD_PICKLE:
        return None
    try:
        if not start.startswith(_ARCHIVE):
            raise EOFError("it is no archive of torch.save")
        found = torch.load(file, map_location="meta", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        # torch's own words advise to set weights_only=False, which would run the code.
        raise RequestError(
            f"{about}: {file.name} is a pickle that holds more than weights, or is damaged. Such "
            f"a file can run code when it is read, so it is not; ask for the weights as safetensors"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:200]
        raise RequestError(
            f"{about}: {file.name} ({file.stat().st_size:,} bytes) is damaged or incomplete: "
            f"{reason}; copy it again"
        ) from error
    is_weights = isinstance(found, Mapping) and all(isinstance(t, Tensor) for t in found.values())
    if not is_weights:
        raise RequestError(
            f"{about}: {file.name} holds other things than weights by name; name another model"
        )
    return dict(found)


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return f"{', '.join(names[:_MAX_SHOWN])}{more}"
