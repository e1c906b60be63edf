"""Tests that need a CUDA device; `make test-gpu` runs them, and fails where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session", autouse=True)
def _a_gpu() -> None:
    assert torch.cuda.is_available(), f"torch {torch.__version__} sees no CUDA device"
