"""Hooks for all tests: nightly tests are slow ones, and `--part` selects a part of the tests.

The collector of cycles would look at the millions of objects of torch, transformers and others
again and again, for half a second each time. So it rests while they are imported, and what has been
imported by then is left out of it.
"""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from tests.parts import PARTS, part_of

gc.disable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", choices=PARTS, help="run one part of the tests; see tests/parts.py")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files of the other part are not even imported."""
    part = config.getoption("--part")
    is_other = part is not None and collection_path.suffix == ".py"
    return True if is_other and part_of(collection_path) != part else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A nightly test is a slow one: what `.ci/run` leaves out, `make test-slow` runs."""
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.slow)
    part = config.getoption("--part")
    # A file that is named on the command line is collected whatever part it belongs to.
    if part is not None:
        others = [item for item in items if part_of(item.path) != part]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if part_of(item.path) == part]


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    gc.enable()
    gc.freeze()


def pytest_unconfigure() -> None:
    # Libraries in C++ count what is left at the end, and report it as a leak.
    gc.unfreeze()
