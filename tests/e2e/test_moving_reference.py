"""A run whose reference moves: what the metrics say of it, and that it resumes exactly."""

from __future__ import annotations

import os
import signal

import pytest

from tests.e2e.run_command import without_times

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(900)]
OPTIONS = (
    "algorithm.kl_coefficient=0.05",
    "algorithm.reference_every=2",
    "algorithm.reference_decay=0.25",
    "reference.dtype=bfloat16",
    "checkpoint.every_steps=3",
    "num_steps=5",
)


def test_killed_and_resumed_equals_uninterrupted(make_run):
    straight = make_run(*OPTIONS, output="straight").succeed()

    killed = make_run(*OPTIONS, output="resumed")
    killed.wait_for_step(4)
    killed.descendants()
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.wait(10)
    killed.survivors()

    resumed = make_run(*OPTIONS, output="resumed").succeed()
    assert "resumed after step 3" in resumed.text
    expected = without_times(straight.metrics())
    assert without_times(resumed.metrics()) == expected
    assert [row["reference/version"] for row in expected] == [0, 2, 2, 4, 4]

    # Without the moved weights in the checkpoint the penalty of the last steps is another one.
    still = make_run(*OPTIONS, "algorithm.reference_every=4", output="still").succeed()
    assert still.metrics()[1]["kl/reference"] == expected[1]["kl/reference"]
    assert still.metrics()[2]["kl/reference"] != expected[2]["kl/reference"]
