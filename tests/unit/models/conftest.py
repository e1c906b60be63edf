from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.testing.tiny import tiny_random


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model; never written to."""
    return tiny_random(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.fixture
def edit() -> Callable[..., None]:
    """Sets fields of a JSON file; a field that is set to None goes away."""

    def call(path: Path, **fields: Any) -> None:
        content = {**json.loads(path.read_text()), **fields}
        kept = {name: value for name, value in content.items() if value is not None}
        path.write_text(json.dumps(kept))

    return call
