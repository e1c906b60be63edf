"""Python sources for the tests, by import path."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

ROWS = [{"prompt": "one", "answer": "1"}, {"prompt": "two", "answer": "2"}]
NUMBER = 7


def endless() -> Iterator[dict[str, str]]:
    for number in itertools.count():
        yield {"prompt": f"row {number}"}


def failing() -> Iterator[dict[str, str]]:
    yield {"prompt": "fine"}
    raise KeyError("the cupboard is bare")
