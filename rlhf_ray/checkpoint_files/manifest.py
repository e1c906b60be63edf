"""The manifest of a checkpoint: size and hash of every file in it.

Every rank hashes the files that it wrote, in its own process, when all ranks have written: they
are still in the page cache of its node. xxh3 reads several gigabytes a second on one core, so the
disk sets the pace. It finds damage; whoever can change a file can also change the manifest.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

MANIFEST_FILE = "manifest.json"
_HASH = "xxh3_128"
_CHUNK_BYTES = 8 * 1024 * 1024
# Names of files of one rank: those of `training`, and DeepSpeed's shards in earlier releases.
_OF_RANK = re.compile(r"(?:state|zero_pp|random|average|moving)_rank_(\d+)|latest_answers_(\d+)")
_MAX_SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSeal:
    """Size in bytes and hash of a file."""

    size: int
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The files of a checkpoint by their path in its folder, with `/` between folders."""

    files: Mapping[str, FileSeal]

    def to_text(self) -> str:
        files = {name: [seal.size, seal.digest] for name, seal in sorted(self.files.items())}
        return json.dumps({"hash": _HASH, "files": files}, indent=1) + "\n"

    @classmethod
    def from_text(cls, text: str) -> Manifest:
        """Read the result of `to_text`.

        Raises:
            ValueError: it is not one.
        """
        try:
            content = json.loads(text)
            files = {
                name: FileSeal(size=int(size), digest=str(digest))
                for name, (size, digest) in content["files"].items()
            }
            kind = content["hash"]
            unusable = [name for name in files if not name.isprintable()]
            if unusable:
                raise ValueError(f"{unusable[0]!a} is no name of a file")
        except (
            ArithmeticError,
            LookupError,
            RecursionError,
            TypeError,
            AttributeError,
            ValueError,
        ) as error:
            raise ValueError(f"it is no manifest ({type(error).__name__}: {error})") from None
        if kind != _HASH:
            raise ValueError(f"its hash is {kind!r}, and this release knows {_HASH}")
        return cls(files=files)

    def below(self, name: str) -> dict[str, FileSeal]:
        """The files of a folder, by their path in that folder."""
        start = f"{name}/"
        return {
            path.removeprefix(start): seal
            for path, seal in self.files.items()
            if path.startswith(start)
        }


def digest_of(content: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(content)


def seal_file(path: Path, *, sync: bool = False) -> FileSeal:
    """Read a file and compute its seal.

    Args:
        sync: wait until the file is on the disk, so that a power cut cannot take it.
    """
    state, size = xxhash.xxh3_128(), 0
    view = memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        if sync:
            os.fsync(file.fileno())
        while count := file.readinto(view):
            state.update(view[:count])
            size += count
    return FileSeal(size=size, digest=state.hexdigest())


def seal_share(
    folder: Path, *, rank: int, world_size: int, sync: bool = False
) -> dict[str, FileSeal]:
    """Seal one rank's share of the files of a role; the shares of all ranks are all files.

    A rank's share is what it wrote: the files with its number, and for rank 0 those without one.
    Other ranks may still be writing theirs: safetensors writes to a hidden file, and renames it.
    """
    return {
        name: seal_file(folder / name, sync=sync)
        for name in files_below(folder)
        if _owner(name) % world_size == rank and not name.rpartition("/")[2].startswith(".")
    }


def files_below(folder: Path) -> Iterator[str]:
    """Paths of all files in a folder and the folders in it, in order."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield (Path(root) / name).relative_to(folder).as_posix()


def size_problems(folder: Path, files: Mapping[str, FileSeal]) -> list[str]:
    """A sentence for every file that is missing, or is not as long as it was when written."""
    problems = []
    for name, seal in files.items():
        size = _size(folder / name)
        if size is None:
            problems.append(f"{name} is missing")
        elif size != seal.size:
            problems.append(f"{name} has {size} bytes, and had {seal.size} when it was written")
    return problems


def hash_problems(files: Mapping[str, FileSeal], found: Mapping[str, FileSeal]) -> list[str]:
    """A sentence for every file that does not have the content that was written."""
    return [
        f"{name} is missing" if name not in found else f"{name} has changed since it was written"
        for name, seal in files.items()
        if found.get(name) != seal
    ]


def listed(problems: Sequence[str]) -> str:
    """The first problems, and the number of the others."""
    more = f", and {len(problems) - _MAX_SHOWN} more" if len(problems) > _MAX_SHOWN else ""
    return ", ".join(problems[:_MAX_SHOWN]) + more


def _owner(name: str) -> int:
    found = _OF_RANK.search(name.rpartition("/")[2])
    return int(found[1] or found[2]) if found else 0


def _size(path: Path) -> int | None:
    """The size of a regular file; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
