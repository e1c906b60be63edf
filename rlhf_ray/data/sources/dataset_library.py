"""Rows from the `datasets` library: a saved folder, or a name on the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlhf_ray.config.groups.data import SourceConfig
from rlhf_ray.data.rows import BrokenRow, DataError, Row, known_names
from rlhf_ray.data.sources.cells import BadValue, arrow_row, narrow_columns
from rlhf_ray.data.sources.folder import FolderFiles
from rlhf_ray.data.sources.whole_numbers import whole_columns_of_table

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?")


def is_saved_folder(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def is_hub_name(path: str) -> bool:
    """Whether `path` reads like `name`, `owner/name`, or one of them with `:subset`."""
    return _HUB_NAME.fullmatch(path) is not None


def read_saved(source: SourceConfig) -> Iterator[Row | BrokenRow]:
    """Rows of a folder that `datasets.save_to_disk` wrote: one split, or several.

    Raises:
        DataError: the folder is of another kind, or has no such split.
    """
    path, split = str(Path(source.path).expanduser()), source.split
    folder = Path(path)
    if not is_saved_folder(folder):
        raise DataError(
            f"{path} was not written by datasets.save_to_disk: it has neither dataset_dict.json "
            f"nor state.json. For a folder of data files, set {source.key('format')}=auto"
        )
    # Imported here, because it takes seconds and other sources do not need it.
    import datasets

    content = _explained(f"{path} cannot be read", lambda: datasets.load_from_disk(path))
    if isinstance(content, datasets.DatasetDict):
        if split not in content:
            raise DataError(
                f"{path} has no split {split!r} ({source.key('split')}); "
                f"{known_names(split, map(str, content))}"
            )
        content = content[split]
    yield from _rows(content, f"{folder.name}")


def read_hub(source: SourceConfig) -> Iterator[Row | BrokenRow]:
    """Rows of a data set on the hub, or of a folder like one; `name:subset` picks a subset.

    Raises:
        DataError: the data set cannot be loaded, or has no such split.
    """
    import datasets

    path, split = source.path, source.split
    folder = Path(path).expanduser()
    is_folder = folder.exists()
    name, _, subset = (str(folder), "", "") if is_folder else path.partition(":")
    kind = "folder" if is_folder else "hub name"
    content = _explained(
        f"{source.key('path')} is {path!r}: the {kind} cannot be loaded as a data set "
        f"(split {split!r})",
        lambda: datasets.load_dataset(name, subset or None, split=split),
    )
    yield from _rows(content, Path(name).name)


def read_chosen(source: SourceConfig, chosen: FolderFiles) -> Iterator[Row | BrokenRow]:
    """Rows of the chosen files of a folder, in formats that the library alone reads.

    Raises:
        DataError: the files cannot be loaded.
    """
    import datasets

    names = {
        split: [path.relative_to(chosen.folder).as_posix() for path in paths]
        for split, paths in chosen.splits.items()
        if split == chosen.asked or chosen.asked not in chosen.splits
    }
    content = _explained(
        f"{source.key('path')} is {source.path!r}: the folder cannot be loaded as a data set "
        f"(split {source.split!r})",
        lambda: datasets.load_dataset(str(chosen.folder), data_files=names, split=chosen.asked),
    )
    yield from _rows(content, chosen.folder.name)


def _explained(what: str, load: Callable[[], Any]) -> Any:
    """Call `load` without progress bars, and turn its errors into a `DataError`."""
    import datasets
    from datasets.exceptions import DatasetsError

    had_bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        return load()
    except (DatasetsError, OSError, ValueError, KeyError) as error:
        # The library's own words are that something went wrong; the cause says what.
        words = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
        raise DataError(f"{what}: {' '.join(': '.join(words).split())[:600]}") from error
    finally:
        if had_bars:
            datasets.enable_progress_bars()


def _rows(content: Any, name: str) -> Iterator[Row | BrokenRow]:
    number, rows = 0, iter(content)
    narrow = {
        **narrow_columns(content.features.arrow_schema),
        **whole_columns_of_table(content.data),
    }
    while number < len(content):
        cells: Any
        try:
            cells = next(rows)
        # A damaged image or a text that is not UTF-8; the libraries that decode raise anything.
        except Exception as error:  # noqa: BLE001
            cells = BadValue(f"cannot be read: {type(error).__name__}: {error}")
            rows = iter(content.select(range(number + 1, len(content))))
        yield arrow_row(cells, number=number, where=f"{name} row {number + 1}", narrow=narrow)
        number += 1
