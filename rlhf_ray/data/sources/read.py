"""Choice of the reader for a source's `path`.

Imports of torch, transformers and `datasets` wait until a reader needs them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from rlhf_ray.config.groups.data import SourceConfig
from rlhf_ray.data.rows import BrokenRow, DataError, Row, known_names
from rlhf_ray.data.sources.compressed import COMPRESSED, bare_name
from rlhf_ray.data.sources.dataset_library import is_hub_name, is_saved_folder, read_hub, read_saved
from rlhf_ray.data.sources.files import read_csv, read_json, read_jsonl, read_parquet
from rlhf_ray.data.sources.prepared import prepared_hint, refuse_prepared_folder
from rlhf_ray.data.sources.python_source import is_import_path, read_python

_FILE_FORMATS = ("jsonl", "json", "csv", "parquet")
# What `datasets` reads in a folder, of texts; compressed files have such a suffix too.
_IN_FOLDERS = frozenset(
    (
        *(".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".pq", ".arrow", ".txt"),
        *(".xml", ".zip", ".tar", ".gz", ".xz", ".bz2", ".zst", ".lz4"),
    )
)
_MAX_NAMED = 6
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}


def read_rows(source: SourceConfig) -> Iterator[Row | BrokenRow]:
    """Read the rows of the configured source in its order, at most `limit`.

    Raises:
        DataError: the source is missing or cannot be read.
    """
    kind = source_format(source)
    if kind in _FILE_FORMATS:
        path = Path(source.path).expanduser()
        check_file(path, source.key("path"))
        if kind == "parquet" and path.suffix.lower() in COMPRESSED:
            raise DataError(
                f"{source.key('path')} is {source.path!r}: Parquet is compressed inside, and "
                "cannot be read as a stream from another compression; decompress the file"
            )
        rows = _file_readers(source)[kind](path)
    elif kind == "saved":
        rows = read_saved(source)
    elif kind == "hub":
        rows = read_hub(source)
    else:
        rows = read_python(source)
    return itertools.islice(rows, source.limit)


def source_format(source: SourceConfig) -> str:
    """The source's `format`; if it is auto, the format that fits the path.

    Raises:
        DataError: the path is empty, or fits no format.
    """
    key = source.key("path")
    if not source.path:
        raise DataError(
            f"{key} is not set; give a file, a folder, a hub name, or package.module:iterable"
        )
    if source.format != "auto":
        return source.format
    path = Path(source.path).expanduser()
    if path.is_dir():
        refuse_prepared_folder(path, key)
        if is_saved_folder(path):
            return "saved"
        _refuse_folder(path, key)
        return "hub"
    suffix = bare_name(path).suffix
    if suffix.lower() in _SUFFIXES:
        return _SUFFIXES[suffix.lower()]
    if path.is_file():
        raise DataError(
            f"{key} is {source.path!r}: the suffix {path.suffix!r} does not tell how to read it; "
            f"set {source.key('format')} to one of {', '.join(_FILE_FORMATS)}"
        )
    if is_import_path(source.path):
        return "python"
    # An unreachable hub takes half a minute to fail, too long for a mistyped path of a file.
    owner, slash, _ = source.path.partition("/")
    if slash and is_hub_name(source.path) and not Path(owner).is_dir():
        return "hub"
    raise DataError(
        f"{key} is {source.path!r}: no such file or folder, and neither a hub name (owner/name) "
        f"nor an import path (package.module:name). {source.key('format')}=hub asks the hub for it "
        "all the same"
    )


def _refuse_folder(folder: Path, key: str) -> None:
    """Refuse a folder in which `datasets` would find no rows, or one whose files are no examples.

    Raises:
        DataError: says what the folder is, and what to name.
    """
    what = None
    if (folder / "config.json").is_file():
        what = "the folder of a model"
    elif (folder / "config.yaml").is_file():
        what = "the output folder of a run"
    elif not any(file.suffix.lower() in _IN_FOLDERS for file in folder.rglob("*.*")):
        what = "a folder without data files"
    if what is not None:
        names = sorted(child.name for child in folder.iterdir())
        inside = ", ".join(names[:_MAX_NAMED]) or "nothing"
        raise DataError(
            f"{key} is {str(folder)!r}, {what} (it holds: {inside}); name a file "
            f"({', '.join(_FILE_FORMATS)}), a folder of such files, or one that "
            f"datasets.save_to_disk wrote"
        )


def source_name(source: SourceConfig) -> str:
    """Default task of the rows: the name of the file or of the Python iterable."""
    if source_format(source) == "python":
        return source.path.partition(":")[2]
    return bare_name(Path(source.path)).stem


def _file_readers(source: SourceConfig) -> dict[str, Callable[[Path], Iterator[Row | BrokenRow]]]:
    """A reader for each of the file formats."""
    return {
        "jsonl": partial(read_jsonl, format_key=source.key("format")),
        "json": partial(read_json, format_key=source.key("format")),
        "csv": read_csv,
        "parquet": read_parquet,
    }


def check_file(path: Path, key: str) -> None:
    """Refuse a path that is not a file.

    Args:
        key: dotted name of the setting with the path.

    Raises:
        DataError: the file does not exist or is a folder; names similar files.
    """
    if path.is_file():
        return
    if path.is_dir():
        raise DataError(f"{key} is {str(path)!r}, a folder; name a file in it")
    if not path.parent.is_dir():
        raise DataError(
            f"{key} is {str(path)!r}: there is no folder {str(path.parent)!r}{prepared_hint(path)}"
        )
    names = [child.name for child in path.parent.iterdir() if bare_name(child).suffix in _SUFFIXES]
    raise DataError(
        f"{key} is {str(path)!r}: no such file; {known_names(path.name, names)}"
        f"{prepared_hint(path)}"
    )
