"""Where rows come from: the one place that decides how `data.path` is read.

Nothing here imports torch, transformers or `datasets` before it has to.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.dataset_library import is_hub_name, is_saved_folder, read_hub, read_saved
from rlhf_ray.data.errors import DataError, among
from rlhf_ray.data.files import read_csv, read_json, read_jsonl, read_parquet
from rlhf_ray.data.prepared import prepared_hint, refuse_prepared_folder
from rlhf_ray.data.python_source import is_import_path, read_python
from rlhf_ray.data.rows import BrokenRow, Row

_FILE_READERS: dict[str, Callable[[Path], Iterator[Row | BrokenRow]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "parquet": read_parquet,
}
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}


def read_rows(data: DataConfig) -> Iterator[Row | BrokenRow]:
    """Rows of the configured source, in its own order, `data.limit` of them at most.

    Raises:
        DataError: the source is missing or cannot be read at all.
    """
    kind = source_format(data)
    if kind in _FILE_READERS:
        path = Path(data.path).expanduser()
        check_file(path)
        rows = _FILE_READERS[kind](path)
    elif kind == "saved":
        rows = read_saved(data.path, data.split)
    elif kind == "hub":
        rows = read_hub(data.path, data.split)
    else:
        rows = read_python(data.path)
    return itertools.islice(rows, data.limit)


def source_format(data: DataConfig) -> str:
    """How `data.path` is read: `data.format`, or what the path looks like where that is auto.

    Raises:
        DataError: the path is empty, or nothing that is known.
    """
    if not data.path:
        raise DataError(
            "data.path is not set; give a file, a folder, a hub name, or package.module:iterable"
        )
    if data.format != "auto":
        return data.format
    path = Path(data.path).expanduser()
    if path.is_dir():
        refuse_prepared_folder(path)
        return "saved" if is_saved_folder(path) else "hub"
    if path.suffix.lower() in _SUFFIXES:
        return _SUFFIXES[path.suffix.lower()]
    if path.is_file():
        raise DataError(
            f"data.path is {data.path!r}: the suffix {path.suffix!r} does not tell how to read it; "
            f"set data.format to one of {', '.join(_FILE_READERS)}"
        )
    if is_import_path(data.path):
        return "python"
    # A hub that cannot be reached is asked for half a minute: not for what is a mistyped path.
    owner, slash, _ = data.path.partition("/")
    if slash and is_hub_name(data.path) and not Path(owner).is_dir():
        return "hub"
    raise DataError(
        f"data.path is {data.path!r}: no such file or folder, and neither a hub name (owner/name) "
        "nor an import path (package.module:name). data.format=hub asks the hub for it all the same"
    )


def source_name(data: DataConfig) -> str:
    """What rows are called that do not name their task themselves."""
    if source_format(data) == "python":
        return data.path.partition(":")[2]
    return Path(data.path).stem


def check_file(path: Path) -> None:
    """Refuse a path that is no file.

    Raises:
        DataError: it names what there is instead.
    """
    if path.is_file():
        return
    if path.is_dir():
        raise DataError(f"data.path is {str(path)!r}, a folder; name a file in it")
    if not path.parent.is_dir():
        raise DataError(
            f"data.path is {str(path)!r}: there is no folder {str(path.parent)!r}"
            f"{prepared_hint(path)}"
        )
    names = [child.name for child in path.parent.iterdir() if child.suffix in _SUFFIXES]
    raise DataError(
        f"data.path is {str(path)!r}: no such file; {among(path.name, names)}{prepared_hint(path)}"
    )
