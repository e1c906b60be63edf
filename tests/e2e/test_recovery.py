"""Engines that are lost within a run: it goes on, loses no group, and keeps the accounts."""

from __future__ import annotations

import json
import os
import re
import signal
import time

import psutil
import pytest

from tests.e2e.run_command import Run

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1500)]
# Answers of full length: an engine is at work for most of a step.
RECOVERING = (
    "generation.ignore_eos=true",
    "generation.max_response_tokens=100",
    "observe.tensorboard=false",
    "recovery.max_restarts=3",
)
TWO = ("generation.num_engines=2",)


def events(run: Run, kind: str) -> list[dict]:
    path = run.output / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for line in lines if (event := json.loads(line))["event"] == kind]


def engines(run: Run) -> list[psutil.Process]:
    """The actors of all engines that live. A title does not tell their places: events do."""
    titles = ("ray::GeneratorActor", "ray::generator_")
    return [p for p in run.descendants() if title(p).startswith(titles)]


def title(process: psutil.Process) -> str:
    """The command line of a process; empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def core(actor: psutil.Process) -> psutil.Process:
    """The process of vLLM behind an actor."""
    children = actor.children(recursive=True)
    (found,) = [child for child in children if "VLLM::EngineCore" in title(child)]
    return found


def check_whole(run: Run, *, num_steps: int, lost: list[str]) -> None:
    """All steps are done, no group is lost or doubled, and every fault is one event."""
    metrics = run.metrics()
    assert [row["step"] for row in metrics] == list(range(1, num_steps + 1))
    rows = [row for step in range(1, num_steps + 1) for row in run.rollouts(step)]
    samples = [(row["prompt_id"], row["sample_index"]) for row in rows]
    assert len(samples) == num_steps * 8
    assert len(set(samples)) == len(samples), "a sample was trained on twice"
    assert [event["engine"] for event in events(run, "engine_lost")] == lost
    assert sum(row["recovery/lost_engines"] for row in metrics) == len(lost)
    again = sum(row["recovery/groups_issued_again"] for row in metrics)
    assert 0 <= again <= 2 * len(lost)
    summary = json.loads((run.output / "summary.json").read_text())
    assert summary["lost_engines"] == len(lost)
    assert re.search(rf"engines lost +{len(lost)}\n", run.text)
    assert run.survivors() == []


@pytest.mark.slow
def test_engines_that_are_killed_while_they_generate(make_run):
    """The groups of the first go to the second; when that is lost, too, the run waits."""
    run = make_run("num_steps=12", *TWO, *RECOVERING)
    run.wait_for_step(1)
    time.sleep(0.5)
    first, second = engines(run)
    os.kill(first.pid, signal.SIGKILL)
    run.wait_until(lambda: len(events(run, "engine_lost")) == 1, 120)
    run.wait_for_step(3)
    os.kill(second.pid, signal.SIGKILL)
    run.succeed(900)
    lost = [event["engine"] for event in events(run, "engine_lost")]
    assert sorted(lost) == ["generator_0", "generator_1"]
    check_whole(run, num_steps=12, lost=lost)
    back = events(run, "engine_back")
    assert back
    assert back[0]["engine"] in ("generator_0.2", "generator_1.2")
    assert back[0]["seconds"] > 1
    assert f"{back[0]['engine']} serves, " in run.text


@pytest.mark.nightly
def test_the_engine_process_of_vllm_is_killed(make_run):
    """The actor around it lives, and is ended: nothing is asked of it again."""
    run = make_run("num_steps=6", *RECOVERING)
    run.wait_for_step(1)
    (actor,) = engines(run)
    os.kill(core(actor).pid, signal.SIGKILL)
    run.wait_until(lambda: len(events(run, "engine_back")) == 1, 600)
    assert title(actor) == ""
    run.succeed(900)
    check_whole(run, num_steps=6, lost=["generator_0"])
    (lost,) = events(run, "engine_lost")
    assert "vLLM engine process has ended" in lost["reason"]


@pytest.mark.nightly
@pytest.mark.parametrize("of", [lambda actor: actor, core], ids=["actor", "vllm"])
def test_an_engine_that_is_stopped(make_run, of):
    """A hang is a loss after `recovery.silence_s`; the process is killed and cannot go on."""
    run = make_run("num_steps=6", *RECOVERING, "recovery.silence_s=20")
    run.wait_for_step(1)
    (actor,) = engines(run)
    victim = of(actor)
    os.kill(victim.pid, signal.SIGSTOP)
    run.wait_until(lambda: len(events(run, "engine_lost")) == 1, 300)
    run.wait_until(lambda: title(victim) == "", 30)
    run.succeed(900)
    check_whole(run, num_steps=6, lost=["generator_0"])
    (lost,) = events(run, "engine_lost")
    assert "did not answer for " in lost["what"]
    assert "recovery.silence_s=20" in lost["reason"]


@pytest.mark.nightly
def test_past_the_budget_the_run_ends_with_the_causes(make_run):
    run = make_run("num_steps=1000", *TWO, *RECOVERING, "recovery.max_restarts=1")
    run.wait_for_step(1)
    first, second = engines(run)
    os.kill(first.pid, signal.SIGKILL)
    run.wait_until(lambda: len(events(run, "engine_lost")) == 1, 120)
    (lost,) = events(run, "engine_lost")
    other = "generator_1" if lost["engine"] == "generator_0" else "generator_0"
    os.kill(second.pid, signal.SIGKILL)
    assert run.wait(180) == 1, run.text[-3000:]
    assert run.survivors() == []
    assert f"failed: {other} died (phase " in run.text
    assert "the run has restarted recovery.max_restarts=1 engines" in run.text
    assert f"The first loss was: {lost['engine']} died (phase " in run.text
    assert len(events(run, "engine_lost")) == 1
