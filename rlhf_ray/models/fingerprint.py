"""Identity of the files behind a model's path, at the cost of a small part of their bytes."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# What models and tokenizers are read from; other files of a folder change neither.
_READ = (".safetensors", ".bin", ".json", ".jinja", ".model", ".tiktoken", ".txt", ".py")
_NOT_READ = {"training_args.bin"}
# Of this file a run reads the tokens that end a text.
_GENERATION = "generation_config.json"
_WHOLE_BYTES = 2**20
_PIECE_BYTES = 2**12
_NUM_PIECES = 256
_NUM_WEIGHTS = 2048
# The end of a file of `torch.save` lists checksums of all that is in it.
_END_BYTES = 2**18


def model_facts(path: str) -> list[str]:
    """The path and, for a folder, name, size and modification time of every file.

    Equal facts mean equal weights as far as a file system can tell. A hub name gives only itself.
    """
    folder = Path(path)
    files = sorted(file for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else []
    facts = [(file.relative_to(folder), file.stat()) for file in files]
    return [path, *(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in facts)]


def file_hashes(path: str) -> dict[str, str]:
    """Hash, by name, of every file that a model or tokenizer is read from.

    A file of up to 1 MiB is read whole. Of a larger one the hash covers the size, the header (of
    safetensors: names, formats and shapes of all weights), 4 KiB from the middle of each of up to
    2,048 weights, and the last 256 KiB: at most 9 MB of a file, and its header. Training changes
    every weight that it touches nearly everywhere, and is seen; one changed number need not be.
    Of generation_config.json it covers the tokens that end a text.

    A copy of the same files has the same hashes. A hub name gives the commit that the local cache
    has for it, and nothing if it is not there.

    Raises:
        OSError: a file cannot be read.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return {place.name: _hash(place)}
    if not place.is_dir():
        return _commit(path)
    files = [*place.iterdir(), *(place / "additional_chat_templates").glob("*.jinja")]
    found = {
        str(file.relative_to(place)): _ends(file) if file.name == _GENERATION else _hash(file)
        for file in sorted(files)
        if file.suffix in _READ and file.name not in _NOT_READ and file.is_file()
    }
    return {name: digest for name, digest in found.items() if digest}


def is_of_weights(name: str) -> bool:
    """Whether a name of `file_hashes` is that of weights, and of nothing else as far as is known.

    The commit of a hub name is taken for one: nothing tells which of its files are others.
    """
    return name == "commit" or name.endswith((".safetensors", ".bin", ".index.json"))


def _ends(file: Path) -> str:
    """The tokens that end a text, as text; empty if the file names none, or cannot be read."""
    try:
        ends = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError, RecursionError):
        return ""
    if ends is None:
        return ""
    return ",".join(sorted(str(end) for end in (ends if isinstance(ends, list) else [ends])))


def _commit(name: str) -> dict[str, str]:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    try:
        commit = (cache / f"models--{name.replace('/', '--')}" / "refs" / "main").read_text()
    except (OSError, ValueError):  # Not there; a name that no folder can have.
        return {}
    return {"commit": commit.strip()}


def _hash(file: Path) -> str:
    size = file.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=8)
    with file.open("rb", buffering=0) as opened:
        if size <= _WHOLE_BYTES:
            digest.update(opened.read())
            return digest.hexdigest()
        middles: Iterator[int] = iter(size * n // _NUM_PIECES for n in range(_NUM_PIECES))
        if file.suffix == ".safetensors" and (header := _header(opened, size)) is not None:
            digest.update(header)
            middles = _middles(header)
        for middle in middles:
            opened.seek(middle)
            digest.update(opened.read(_PIECE_BYTES))
        opened.seek(size - _END_BYTES)
        digest.update(opened.read(_END_BYTES))
    return digest.hexdigest()


def _header(opened: BinaryIO, size: int) -> bytes | None:
    """The header of a safetensors file; None if the file is damaged, which loading will say."""
    (length,) = struct.unpack("<Q", opened.read(8))
    return opened.read(length) if length <= size - 8 else None


def _middles(header: bytes) -> Iterator[int]:
    """Places in a safetensors file, each in the middle of a weight."""
    try:
        entries = json.loads(header)
        middles = {
            name: sum(int(end) for end in entry["data_offsets"]) // 2
            for name, entry in entries.items()
            if name != "__metadata__"
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return
    # Every n-th one would always leave out the same kinds of weights of each layer.
    chosen = sorted(middles, key=_shuffled)[:_NUM_WEIGHTS]
    yield from sorted(8 + len(header) + middles[name] for name in chosen)


def _shuffled(name: str) -> bytes:
    """A key that sorts names in an order that has nothing to do with their spelling."""
    return hashlib.blake2b(name.encode(errors="replace"), digest_size=8).digest()
