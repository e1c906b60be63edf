"""Rows from a Python iterable, or from a callable that returns one, by import path."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from rlhf_ray.config.earlier_release import moved_path
from rlhf_ray.config.groups.data import SourceConfig
from rlhf_ray.data.rows import BrokenRow, DataError, Row, known_names, row_from, shown

_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_import_path(path: str) -> bool:
    """Whether `path` reads like `package.module:name`."""
    return _IMPORT_PATH.fullmatch(path) is not None


def read_python(source: SourceConfig) -> Iterator[Row | BrokenRow]:
    """Read the rows of the iterable `package.module:name`.

    A callable is called without arguments. The rows are dictionaries; an endless iterable needs
    the source's `limit`.

    Raises:
        DataError: the name cannot be imported, is not an iterable, or its own code raises.
    """
    path, key = source.path, source.key("path")
    if not is_import_path(path):
        raise DataError(f"{key} is {path!r}; a Python source is named package.module:name")
    if new := moved_path(path):
        raise DataError(f"{key} is {path!r}, which has moved; set it to {new!r}")
    number = 0
    try:
        for value in _iterable(path, key):
            yield row_from(value, number=number, where=f"{path} row {number + 1}")
            number += 1
    except DataError:
        raise
    # The user's code may raise anything; the message must say which source it came from.
    except Exception as error:
        raise DataError(
            f"{path} raised {type(error).__name__} after {number} rows: {error}"
        ) from error


def _iterable(path: str, key: str) -> Iterable[Any]:
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # An import inside the module may have failed: `error.name` says which module is missing.
        raise DataError(
            f"{key} is {path!r}: no module {error.name!r} can be imported; add its folder to "
            "PYTHONPATH, or install the package"
        ) from error
    found = vars(module)
    if name not in found:
        public = [other for other in found if not other.startswith("_")]
        raise DataError(
            f"{key} is {path!r}: {module_name} has no {name!r}; {known_names(name, public)}"
        )
    value = found[name]
    if callable(value):
        value = value()
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | dict):
        raise DataError(
            f"{key} is {path!r}, which must give an iterable of dictionaries; "
            f"it gives {shown(value)}"
        )
    return value
