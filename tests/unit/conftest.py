"""Settings of all unit tests."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """One thread for torch: the tensors here are tiny, and more threads only wait for each other.

    Nothing is imported for it: a folder that needs no torch starts without torch.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
