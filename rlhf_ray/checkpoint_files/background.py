"""A write in a thread, while the process goes on with its work."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class BackgroundWrite(Generic[T]):
    """A call in a thread of its own; its failure is raised where its result is asked for.

    The thread does not keep the process alive: a run that fails ends without it, and leaves files
    that were never committed.
    """

    def __init__(self, write: Callable[[], T]) -> None:
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(write,), daemon=True)
        self._thread.start()

    def result(self, *, wait_s: float) -> T | None:
        """The result of the call; None if it is not there after `wait_s` seconds.

        Raises:
            Exception: that of the call.
        """
        self._thread.join(wait_s)
        if self._thread.is_alive():
            return None
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self, write: Callable[[], T]) -> None:
        try:
            self._results.append(write())
        except BaseException as error:  # noqa: BLE001 - it is raised by `result`
            self._error = error
