"""Memory and time of the loss against the plain form, in separate processes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[4]
DEADLINE_S = 280.0


def measured(*arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.training.forward.loss_cost", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.nightly
def test_peak_memory_is_at_most_a_quarter():
    plain, chunked = (measured("memory", name) for name in ("plain", "chunked"))
    # All logits and their gradient, at least: the measurement has seen them.
    assert plain > 2 * 4096 * 49_152 * 4
    assert chunked <= plain / 4, f"{chunked / 2**20:.0f} MiB, and {plain / 2**20:.0f} plainly"


@pytest.mark.nightly
def test_time_is_at_most_1_4_times_the_plain_forms():
    seconds = measured("time", "2")
    chunked, plain = (statistics.median(seconds[name]) for name in ("chunked", "plain"))
    assert chunked <= 1.4 * plain, seconds
