"""Learner and critic that die within a run: it heals them, and ends as if they had not."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from typing import Any

import psutil
import pytest

from tests.e2e.run_command import TIMES, Run
from tests.e2e.test_recovery import events, title

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1500)]
HEALING = (
    "recovery.max_restarts=3",
    "training.cpu_threads=1",
    "generation.cpu_threads=1",
    "observe.tensorboard=false",
    # Many forward passes, and many buckets: a signal comes in the middle of them.
    "training.max_tokens_per_micro_batch=64",
    "publish.bucket_bytes=16384",
)
PPO = ("algorithm=ppo", "critic.cpu_threads=1", "reference.cpu_threads=1")


def actors(run: Run, role: str) -> list[psutil.Process]:
    """The actors of a role that live. Ray writes the method that one runs into its title."""
    starts = (f"ray::{role.capitalize()}Actor", f"ray::{role}_")
    return [p for p in run.descendants() if title(p).startswith(starts)]


def strike(run: Run, role: str, method: str, *, how: int = signal.SIGKILL) -> None:
    """Send a signal to the last rank that runs this method."""
    ranks = actors(run, role)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for actor in reversed(ranks):
            # Ray fills the rest of the title with empty arguments.
            if title(actor).rstrip().endswith(f".{method}"):
                os.kill(actor.pid, how)
                return
    raise AssertionError(f"no {role} runs {method}: {[title(actor).strip() for actor in ranks]}")


def compared(run: Run) -> list[dict[str, float]]:
    """Metrics that a loss must not change."""
    left_out = (*TIMES, "recovery/")
    return [
        {name: value for name, value in row.items() if not name.startswith(left_out)}
        for row in run.metrics()
    ]


def check(run: Run, undisturbed: Run, *phases: str) -> list[dict[str, Any]]:
    """The same metrics and samples, and as many events as faults; returns the losses."""
    num_steps = len(undisturbed.metrics())
    assert compared(run) == compared(undisturbed)
    for step in range(1, num_steps + 1):
        assert run.rollouts(step) == undisturbed.rollouts(step)
    lost, back = events(run, "role_lost"), events(run, "role_back")
    assert [event["phase"] for event in lost] == list(phases)
    assert len(back) == len(phases)
    metrics = run.metrics()
    assert sum(row["recovery/lost_ranks"] for row in metrics) == len(phases)
    assert sum(row["recovery/training_restarts"] for row in metrics) == len(phases)
    assert sum(row["recovery/lost_engines"] for row in metrics) == 0
    assert json.loads((run.output / "summary.json").read_text())["lost_ranks"] == len(phases)
    assert re.search(rf"training ranks lost +{len(phases)}\n", run.text)
    assert not events(undisturbed, "role_lost")
    assert run.survivors() == []
    return lost


@pytest.mark.slow
def test_a_learner_that_dies_in_an_update_and_in_a_publish(make_run):
    options = (*HEALING, "num_steps=5")
    undisturbed = make_run(*options, output="undisturbed").succeed()
    run = make_run(*options)
    run.wait_for_step(1)
    strike(run, "learner", "update")
    run.wait_until(lambda: len(events(run, "role_back")) == 1, 240)
    run.wait_for_step(3)
    strike(run, "learner", "weight_buckets")
    run.succeed(600)
    first, second = check(run, undisturbed, "update", "publish")
    assert (first["worker"], second["worker"]) == ("learner_0", "learner_0.2")
    sources = [event["source"] for event in events(run, "role_back")]
    assert sources == [f"the snapshot of step {event['step']}" for event in (first, second)]


@pytest.mark.nightly
@pytest.mark.parametrize("transport", ["collective", "ipc"])
def test_a_learner_that_dies_in_the_publish_of_a_channel(make_run, transport):
    options = (*HEALING, "num_steps=4", f"publish.transport={transport}")
    undisturbed = make_run(*options, output="undisturbed").succeed()
    run = make_run(*options)
    run.wait_for_step(1)
    strike(run, "learner", "send_weights")
    run.succeed(600)
    check(run, undisturbed, "publish")


@pytest.mark.nightly
@pytest.mark.parametrize("source", ["snapshot", "checkpoint"])
def test_a_rank_of_two_that_dies(make_run, source):
    """ZeRO-2 on two ranks: all ranks start again, each with its share."""
    options = (*HEALING, "num_steps=5", "training.num_ranks=2", "training.zero_stage=2")
    if source == "checkpoint":
        options += ("recovery.snapshot_every=0", "checkpoint.every_steps=2")
    undisturbed = make_run(*options, output="undisturbed").succeed()
    run = make_run(*options)
    run.wait_for_step(3)
    strike(run, "learner", "update")
    run.succeed(600)
    check(run, undisturbed, "update")
    (back,) = events(run, "role_back")
    assert back["workers"] == ["learner_0.2", "learner_1.2"]
    if source == "checkpoint":
        assert back["source"].endswith("step_000002")
        assert back["updates_done_again"] == 1


@pytest.mark.nightly
@pytest.mark.parametrize(("role", "method"), [("critic", "update"), ("critic", "score")])
def test_a_critic_that_dies(make_run, role, method):
    options = (*HEALING, *PPO, "num_steps=4", "critic.max_tokens_per_micro_batch=64")
    undisturbed = make_run(*options, output="undisturbed").succeed()
    run = make_run(*options)
    run.wait_for_step(2)
    strike(run, role, method)
    run.succeed(600)
    (lost,) = check(run, undisturbed, "update" if method == "update" else "reference")
    assert lost["role"] == "critic"


@pytest.mark.nightly
def test_a_learner_that_is_stopped(make_run):
    options = (*HEALING, "num_steps=4", "deadlines.update_s=15")
    undisturbed = make_run(*options, output="undisturbed").succeed()
    run = make_run(*options)
    run.wait_for_step(2)
    strike(run, "learner", "update", how=signal.SIGSTOP)
    run.succeed(600)
    (lost,) = check(run, undisturbed, "update")
    assert "did not answer in 15 s" in lost["what"]


@pytest.mark.nightly
def test_engines_go_on_while_the_learner_is_healed(make_run):
    """With staleness the next batches are sampled meanwhile, by the weights before."""
    run = make_run(*HEALING, "num_steps=8", "max_staleness=2")
    run.wait_for_step(2)
    strike(run, "learner", "update")
    run.succeed(600)
    metrics = run.metrics()
    assert [row["step"] for row in metrics] == list(range(1, 9))
    assert all(row["rollout/staleness_max"] <= 2 for row in metrics)
    assert sum(row["recovery/lost_ranks"] for row in metrics) == 1
    rows = [row for step in range(1, 9) for row in run.rollouts(step)]
    samples = {(row["prompt_id"], row["sample_index"]) for row in rows}
    assert len(samples) == len(rows) == 8 * 8


@pytest.mark.nightly
def test_past_the_budget_the_run_ends_with_the_first_cause(make_run):
    run = make_run(*HEALING, "num_steps=1000", "recovery.max_restarts=1")
    run.wait_for_step(1)
    strike(run, "learner", "update")
    run.wait_until(lambda: len(events(run, "role_back")) == 1, 240)
    run.wait_for_step(3)
    strike(run, "learner", "update")
    assert run.wait(180) == 1, run.text[-3000:]
    assert run.survivors() == []
    assert "failed: learner_0.2 died (phase update" in run.text
    assert "the run has restarted its learner recovery.max_restarts=1 times" in run.text
    assert "The first loss was: learner_0 died (phase update" in run.text
    assert len(events(run, "role_lost")) == 1
