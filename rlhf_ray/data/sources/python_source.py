"""Rows from a Python iterable, or from a callable that returns one, by import path."""

from __future__ import annotations

import importlib
import re
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rlhf_ray.config.earlier_release import moved_path
from rlhf_ray.config.groups.data import SourceConfig
from rlhf_ray.data.rows import BrokenRow, DataError, Row, known_names, shown
from rlhf_ray.data.sources.cells import plain_row

_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_import_path(path: str) -> bool:
    """Whether `path` reads like `package.module:name`."""
    return _IMPORT_PATH.fullmatch(path) is not None


def read_python(source: SourceConfig) -> Iterator[Row | BrokenRow]:
    """Read the rows of the iterable `package.module:name`.

    A callable is called without arguments. The rows are dictionaries; an endless iterable needs
    the source's `limit`.

    Raises:
        DataError: the name cannot be imported, is not an iterable, its own code raises or ends the
            process, or it gives no row within `row_timeout_s`.
    """
    path, key = source.path, source.key("path")
    if not is_import_path(path):
        raise DataError(f"{key} is {path!r}; a Python source is named package.module:name")
    if new := moved_path(path):
        raise DataError(f"{key} is {path!r}, which has moved; set it to {new!r}")
    number, rows = 0, None
    while True:
        try:
            with _limited(source):
                rows = iter(_iterable(path, key)) if rows is None else rows
                value = next(rows)
        except StopIteration:
            return
        except DataError:
            raise
        except _NoRow:
            raise DataError(
                f"{path} has given no row for {source.row_timeout_s:g} s, after {number} rows; if "
                f"it needs longer, raise {source.key('row_timeout_s')}"
            ) from None
        # The user's code may raise anything; the message must say which source it came from.
        except (Exception, SystemExit) as error:
            raise DataError(
                f"{path} raised {type(error).__name__} after {number} rows: {error}"
            ) from error
        yield plain_row(value, number=number, where=f"{path} row {number + 1}")
        number += 1


class _NoRow(BaseException):
    """The time for one row is over. No `Exception`, which the user's code might catch."""


@contextmanager
def _limited(source: SourceConfig) -> Iterator[None]:
    """Interrupt the block after the source's `row_timeout_s`.

    Only the main thread gets signals; elsewhere the block has no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: object) -> None:
        raise _NoRow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, source.row_timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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
