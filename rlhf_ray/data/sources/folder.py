"""Choice of the files of an ordinary folder of data: all of them, or those of one split.

The `datasets` library decides by names alone which files it reads, and leaves the others out
without a word. Here every data file is read, named as left out, or refused.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.config.groups.data import SourceConfig
from rlhf_ray.data.rows import DataError, known_names
from rlhf_ray.data.sources.compressed import bare_name

# What `datasets` reads, of texts; the name is that of the format in messages.
FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".xml": "xml",
    ".zip": "zip",
    ".tar": "tar",
    ".lz4": "lz4",
}
# About the data, and not data: the list of `datasets`.
_NO_DATA = frozenset(
    ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
)
_HIDDEN = (".", "__")
# The words of `datasets`, and what may stand next to them.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF_WORD = {word: split for split, words in _SPLITS.items() for word in words}
_BETWEEN_WORDS = re.compile(r"[-._ 0-9]+")
# As the hub writes data sets of many files.
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}.*")
_DECLARED = re.compile(r"\A---\s*\n(.*?\n)??configs:", re.DOTALL)
_MAX_NAMED = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderFiles:
    """The data files of a folder, by name.

    Attributes:
        format: of the files that are read, a value of `FORMATS`.
        splits: files of each split; all of "train" in a folder without splits.
        asked: name of the split that is read; the expression as given if it is none of `splits`.
        left_out: data files that are not read.
    """

    folder: Path
    format: str
    splits: dict[str, tuple[Path, ...]]
    asked: str
    has_splits: bool
    left_out: tuple[Path, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read; with an expression for several splits, of all splits."""
        if self.asked in self.splits:
            return self.splits[self.asked]
        return tuple(itertools.chain.from_iterable(self.splits.values()))

    def note(self, key: str) -> str:
        """Line for the screen: which files are read, and which are not."""
        which = f"split {self.asked!r}, " if self.has_splits else ""
        line = (
            f"{key} is a folder: {which}{len(self.files)} {self.format} files are read: "
            f"{names_in(self.folder, self.files)}"
        )
        if self.left_out:
            line += f"; {len(self.left_out)} are left out: {names_in(self.folder, self.left_out)}"
        return line


def is_declared(folder: Path) -> bool:
    """Whether README.md says which files make which split, as in a data set of the hub."""
    card = folder / "README.md"
    return card.is_file() and _DECLARED.match(card.read_text("utf-8", errors="replace")) is not None


def choose_files(source: SourceConfig) -> FolderFiles:
    """Choose the files of the folder at `path` that the source reads.

    Sub-folders or file names that have a word such as train or test make splits; without any such
    word all files are read, in the order of their names.

    Raises:
        DataError: there is no data file, no such split, a file of no split or of two, or files of
            several formats.
    """
    folder, key = Path(source.path).expanduser(), source.key("path")
    return _chosen(folder, _data_names(folder, key), source.split, key, source.key("split"))


# One choice is asked for a dozen times, and takes seconds where there are 100,000 files.
@functools.lru_cache(maxsize=8)
def _chosen(
    folder: Path, names: tuple[str, ...], split: str, key: str, split_key: str
) -> FolderFiles:
    """See `choose_files`.

    Args:
        names: of the data files, below the folder.
    """
    found = [folder / name for name in names]
    if not found:
        raise no_examples(folder, key, "a folder without data files")
    # Notes and licences next to the data, which are texts only where there is nothing else.
    texts = [path for path in found if _format(path) == "text"]
    files = [path for path in found if _format(path) != "text"] or texts
    others = tuple(texts) if files is not texts else ()
    named = _splits(folder, files, key)
    splits = named or {"train": tuple(files)}
    asked = _asked(split, folder, splits, key, split_key, has_splits=named is not None)
    if named is None:
        return FolderFiles(
            folder=folder,
            format=_one_format(folder, files, key),
            splits=splits,
            asked=asked,
            has_splits=False,
            left_out=others,
        )
    chosen = splits.get(asked, tuple(files))
    read = set(chosen)
    return FolderFiles(
        folder=folder,
        format=_one_format(folder, chosen, key),
        splits=splits,
        asked=asked,
        has_splits=True,
        left_out=tuple(path for path in found if path not in read),
    )


def no_examples(folder: Path, key: str, what: str) -> DataError:
    """The error that a folder is `what`, and holds no rows."""
    names = sorted(child.name for child in folder.iterdir())
    inside = ", ".join(names[:_MAX_NAMED]) or "nothing"
    return DataError(
        f"{key} is {str(folder)!r}, {what} (it holds: {inside}); name a file (jsonl, json, csv, "
        "parquet), a folder of such files, or one that datasets.save_to_disk wrote"
    )


def _data_names(folder: Path, key: str) -> tuple[str, ...]:
    """The data files below a folder, by their paths there, in order; none of hidden folders.

    Raises:
        DataError: a folder in it cannot be read, and nothing tells what is lost.
    """

    def refuse(error: OSError) -> None:
        raise DataError(
            f"{key} is {str(folder)!r}, and {error.filename} in it cannot be read: "
            f"{error.strerror}; let this user read it, or name a file"
        )

    found: list[str] = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        # A file system's own folder, which its owner alone can read.
        folders[:] = [n for n in folders if not n.startswith(_HIDDEN) and n != "lost+found"]
        below = os.path.relpath(place, folder)
        prefix = "" if below == "." else f"{below}/"
        found += [
            f"{prefix}{name}"
            for name in files
            if _is_data(name) and os.path.isfile(os.path.join(place, name))
        ]
    return tuple(sorted(found))


def _is_data(name: str) -> bool:
    is_known = name not in _NO_DATA and bool(_format(Path(name)))
    return is_known and not name.startswith(_HIDDEN)


def _format(path: Path) -> str:
    """The format of a file by its name; empty for one that is no data."""
    return FORMATS.get(bare_name(path).suffix.lower(), "")


def _splits(folder: Path, files: list[Path], key: str) -> dict[str, tuple[Path, ...]] | None:
    """The files of each split; None if neither a sub-folder nor a file is named like one.

    Raises:
        DataError: only some files are of a split, or one is of two.
    """
    for names in (_shard_splits, _folder_splits, _file_splits):
        found = {path: names(path.relative_to(folder)) for path in files}
        if not any(found.values()):
            continue
        twice = [path for path, splits in found.items() if len(splits) > 1]
        without = [path for path, splits in found.items() if not splits]
        if twice:
            raise DataError(
                f"{key} is {str(folder)!r}, and {names_in(folder, twice)} could be of several "
                f"splits ({', '.join(sorted(found[twice[0]]))}); rename it, or name a file"
            )
        if without:
            named = [path for path, splits in found.items() if splits]
            raise DataError(
                f"{key} is {str(folder)!r}, where some files are named like a split "
                f"({names_in(folder, named)}) and others are not ({names_in(folder, without)}). "
                "Name a file, rename them so that all or none have a word such as train or test, "
                "or move those that are not meant"
            )
        splits: dict[str, list[Path]] = {}
        for path, (split,) in found.items():
            splits.setdefault(split, []).append(path)
        return {split: tuple(paths) for split, paths in splits.items()}
    return None


def _shard_splits(path: Path) -> set[str]:
    shard = _SHARD.fullmatch(path.name)
    return {shard[1]} if shard is not None and path.parent.as_posix() == "data" else set()


def _folder_splits(path: Path) -> set[str]:
    return set().union(*(_in_name(part) for part in path.parent.parts))


def _file_splits(path: Path) -> set[str]:
    return _in_name(path.name)


def _in_name(name: str) -> set[str]:
    words = _BETWEEN_WORDS.split(name.lower())
    return {_SPLIT_OF_WORD[word] for word in words if word in _SPLIT_OF_WORD}


def _asked(
    asked: str,
    folder: Path,
    splits: dict[str, tuple[Path, ...]],
    key: str,
    split_key: str,
    *,
    has_splits: bool,
) -> str:
    """The split that is read: as asked, or another word for it; or an expression of splits."""
    if asked in splits:
        return asked
    if _SPLIT_OF_WORD.get(asked) in splits:
        return _SPLIT_OF_WORD[asked]
    if re.search(r"[\[+(]", asked):
        return asked
    if not has_splits:
        raise DataError(
            f"{key} is {str(folder)!r}, and no sub-folder or file in it is named like a split: "
            f"there is no {asked!r} ({split_key}), and all are 'train'"
        )
    raise DataError(
        f"{key} is {str(folder)!r}, whose files have no split {asked!r} ({split_key}); "
        f"{known_names(asked, splits)}"
    )


def _one_format(folder: Path, files: Sequence[Path], key: str) -> str:
    formats: dict[str, list[Path]] = {}
    for path in files:
        formats.setdefault(_format(path), []).append(path)
    if len(formats) > 1:
        kinds = "; ".join(f"{kind}: {names_in(folder, paths)}" for kind, paths in formats.items())
        raise DataError(
            f"{key} is {str(folder)!r}, with files of several formats ({kinds}); name a file, or "
            "leave those of one format in the folder"
        )
    return next(iter(formats))


def names_in(folder: Path, files: Sequence[Path]) -> str:
    """Names of the first files, as they are below the folder, and how many more there are."""
    names = [path.relative_to(folder).as_posix() for path in files[:_MAX_NAMED]]
    more = f" and {len(files) - _MAX_NAMED} more" if len(files) > _MAX_NAMED else ""
    return f"{', '.join(names)}{more}"
