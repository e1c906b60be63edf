"""Choice of the reader for a source's `path`.

Imports of torch, transformers and `datasets` wait until a reader needs them.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from rlhf_ray.config.groups.data import SourceConfig
from rlhf_ray.data.rows import BrokenRow, DataError, Row, known_names
from rlhf_ray.data.sources.compressed import COMPRESSED, bare_name
from rlhf_ray.data.sources.dataset_library import (
    is_hub_name,
    is_saved_folder,
    read_chosen,
    read_hub,
    read_saved,
)
from rlhf_ray.data.sources.files import read_csv, read_json, read_jsonl, read_parquet
from rlhf_ray.data.sources.folder import choose_files, is_declared, no_examples
from rlhf_ray.data.sources.folder_rows import read_files
from rlhf_ray.data.sources.prepared import prepared_hint, refuse_prepared_folder
from rlhf_ray.data.sources.python_source import is_import_path, read_python

_FILE_FORMATS = ("jsonl", "json", "csv", "parquet")
# End of a line of a plan.
FROM_HUB = "is read from the hub when the run starts"
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
    elif kind == "folder":
        chosen = choose_files(source)
        if _is_read_here(source):
            reader = _file_readers(source)[chosen.format]
            rows = read_files(chosen, reader, source.key("path"))
        else:
            rows = read_chosen(source, chosen)
    elif kind == "saved":
        rows = read_saved(source)
    elif kind == "hub":
        rows = read_hub(source)
    else:
        rows = read_python(source)
    return itertools.islice(rows, source.limit)


def source_format(source: SourceConfig) -> str:
    """The source's `format`; if it is auto, the format that fits the path.

    "folder" stands for an ordinary folder of data files, whose files `choose_files` chooses.

    Raises:
        DataError: the path is empty, or fits no format.
    """
    key = source.key("path")
    if not source.path:
        raise DataError(
            f"{key} is not set; give a file, a folder, a hub name, or package.module:iterable"
        )
    path = Path(source.path).expanduser()
    if source.format == "hub" and path.is_dir():
        return "hub" if is_declared(path) else "folder"
    if source.format != "auto":
        return source.format
    if path.is_dir():
        refuse_prepared_folder(path, key)
        if is_saved_folder(path):
            return "saved"
        _refuse_folder(path, key)
        if is_declared(path):
            return "hub"
        choose_files(source)
        return "folder"
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
    meant = _near_folder(source.path)
    if slash and is_hub_name(source.path) and not Path(owner).is_dir() and meant is None:
        return "hub"
    raise DataError(
        f"{key} is {source.path!r}: no such file or folder"
        f"{f' (did you mean {meant}?)' if meant else ''}, and neither a hub name (owner/name) "
        f"nor an import path (package.module:name). {source.key('format')}=hub asks the hub for it "
        "all the same"
    )


def _near_folder(path: str) -> str | None:
    """The path with the name of a folder that is here, if only that name was mistyped."""
    owner, slash, name = path.partition("/")
    if not slash or Path(owner).exists():
        return None
    try:
        here = [child.name for child in Path().iterdir() if (child / name).exists()]
    except OSError:
        return None  # Only a hint: a folder here may belong to someone else.
    close = difflib.get_close_matches(owner, here, n=1)
    return f"{close[0]}/{name}" if close and name else None


def source_notes(source: SourceConfig) -> tuple[str, ...]:
    """Lines for the screen about a folder: which files are read, and which are left out.

    Raises:
        DataError: see `source_format`.
    """
    key, path = source.key("path"), Path(source.path).expanduser()
    kind = source_format(source)
    if kind == "folder":
        return (choose_files(source).note(key),)
    if kind == "hub" and path.is_dir():
        return (f"{key} is a folder: its README.md says which files split {source.split!r} has",)
    return ()


def is_on_hub(source: SourceConfig) -> bool:
    """Whether the rows are asked for over the network.

    Raises:
        DataError: see `source_format`.
    """
    return source_format(source) == "hub" and not Path(source.path).expanduser().is_dir()


def source_files(source: SourceConfig) -> tuple[Path, ...]:
    """The files on this machine that the source reads; none for a saved data set or the hub."""
    path = Path(source.path).expanduser()
    if path.is_file():
        return (path,)
    try:
        if path.is_dir() and source_format(source) == "folder":
            return choose_files(source).files
    except DataError:
        pass  # Whoever reads the rows says what is wrong.
    return ()


def is_streamed(source: SourceConfig) -> bool:
    """Whether the first rows are there without reading all, or a library that takes seconds."""
    kind = source_format(source)
    return kind in ("jsonl", "csv", "parquet") or (kind == "folder" and _is_read_here(source))


def has_header(source: SourceConfig) -> bool:
    """Whether every row has all columns."""
    kind = source_format(source)
    return (choose_files(source).format if kind == "folder" else kind) in ("csv", "parquet")


def keeps_digits(source: SourceConfig) -> bool:
    """Whether numbers of the rows have the digits of the source; Arrow holds numbers alone."""
    kind = source_format(source)
    if kind == "folder":
        return _is_read_here(source) and choose_files(source).format != "parquet"
    return kind in ("jsonl", "json", "csv", "python")


def _is_read_here(source: SourceConfig) -> bool:
    """Whether the files of the folder have readers here; the others are left to `datasets`."""
    chosen = choose_files(source)
    is_packed = any(path.suffix.lower() in COMPRESSED for path in chosen.files)
    kinds = ("jsonl", "csv") if is_packed else ("jsonl", "csv", "parquet")
    return chosen.asked in chosen.splits and chosen.format in kinds


def _refuse_folder(folder: Path, key: str) -> None:
    """Refuse a folder whose files are no examples.

    Raises:
        DataError: says what the folder is, and what to name.
    """
    what = None
    if (folder / "config.json").is_file():
        what = "the folder of a model"
    elif (folder / "config.yaml").is_file():
        what = "the output folder of a run"
    if what is not None:
        raise no_examples(folder, key, what)


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
