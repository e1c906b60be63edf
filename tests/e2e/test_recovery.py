"""Engines that are lost within a run: it goes on, loses no group, and keeps the accounts."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence

import psutil
import pytest

from tests.e2e.run_command import Run

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]
NUM_STEPS = 6
# Answers of full length: an engine is at work for most of a step.
RECOVERING = (
    f"num_steps={NUM_STEPS}",
    "generation.num_engines=2",
    "generation.ignore_eos=true",
    "generation.max_response_tokens=100",
    "reward.functions=[{path: length, arguments: {target: 50}}]",
    "recovery.max_restarts=2",
    "observe.tensorboard=false",
)


def events(run: Run, kind: str) -> list[dict]:
    path = run.output / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for line in lines if (event := json.loads(line))["event"] == kind]


def engines(run: Run) -> list[psutil.Process]:
    """The actors, in the order of their creation."""
    found = [p for p in run.descendants() if "ray::Generator" in " ".join(_title(p))]
    return sorted(found, key=lambda process: process.create_time())


def _title(process: psutil.Process) -> Sequence[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return ()


def check_whole(run: Run, *, num_faults: int, num_steps: int = NUM_STEPS) -> None:
    """All steps are done, no group is lost or doubled, and every fault is one event."""
    metrics = run.metrics()
    assert [row["step"] for row in metrics] == list(range(1, num_steps + 1))
    seen: list[tuple[str, int]] = []
    for step in range(1, num_steps + 1):
        rows = run.rollouts(step)
        groups = {row["prompt_id"] for row in rows}
        assert len(groups) == 2
        assert len(rows) == 8
        seen += [(row["prompt_id"], row["sample_index"]) for row in rows]
    assert len(seen) == len(set(seen)), "a sample was trained on twice"
    assert len(events(run, "engine_lost")) == num_faults
    assert sum(row["recovery/lost_engines"] for row in metrics) <= num_faults
    assert json.loads((run.output / "summary.json").read_text())["lost_engines"] == num_faults
    assert f"engines lost  {num_faults}" in " ".join(run.text.split("\n")).replace("   ", "  ")


def wait_for(run: Run, holds: Callable[[], bool], timeout_s: float = 240) -> None:
    run.wait_until(holds, timeout_s)


@pytest.mark.slow
def test_an_engine_that_is_killed_while_it_generates(make_run):
    """Its groups go to the other one; a replacement serves after the next publish."""
    run = make_run(*RECOVERING)
    run.wait_for_step(1)
    time.sleep(0.3)
    os.kill(engines(run)[1].pid, signal.SIGKILL)
    wait_for(run, lambda: events(run, "engine_lost") != [])
    run.succeed(600)
    check_whole(run, num_faults=1)
    (lost,) = events(run, "engine_lost")
    assert lost["engine"] in ("generator_0", "generator_1")
    assert lost["next_engine"] == f"{lost['engine']}.2"
    assert run.survivors() == []
