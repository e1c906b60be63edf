"""A tiny untrained model, and runs of the real command on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_ray.testing.tiny import tiny_random
from tests.e2e.run_command import Run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return tiny_random(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def make_run(tiny_model, tmp_path, request):
    """Starts `python -m rlhf_ray.main` with small sizes and the given overrides; ends it."""
    runs: list[Run] = []

    def make(*overrides: str, output: str = "run") -> Run:
        run = Run(tiny_model, tmp_path / output, overrides)
        runs.append(run)
        return run

    yield make
    for run in runs:
        run.end()
