"""Workers that die or stall end the run: in time, by name, without a trace."""

from __future__ import annotations

import os
import signal

import pytest

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]
ENDLESS = ("num_steps=100000", "observe.rollouts=false", "observe.tensorboard=false")


def fail(make_run, title: str, number: signal.Signals, *overrides: str):
    """Run, send a signal to the process with this title, and return the run when it ended."""
    run = make_run(*ENDLESS, *overrides)
    run.wait_for_step(2)
    victim = run.process_of(title)
    os.kill(victim.pid, number)
    assert run.wait(90) == 1, run.text[-3000:]
    assert run.survivors() == []
    # A worker's own log may hold one; what we say does not.
    ours = run.text.split("--- end of the log")[0]
    assert "Traceback" not in ours
    return run


@pytest.mark.slow
def test_a_killed_engine(make_run):
    text = fail(make_run, "VLLM::EngineCore", signal.SIGKILL).text
    assert "failed: generator_0" in text
    assert "step" in text
    assert "--- end of the log of generator_0" in text
    assert "--- stacks of learner_0:\nidle: waiting for work" in text


@pytest.mark.nightly
def test_a_killed_learner_rank(make_run):
    text = fail(make_run, "ray::Learner", signal.SIGKILL, "training.num_ranks=2").text
    assert "failed: learner_" in text
    assert " died (phase " in text


@pytest.mark.nightly
def test_a_killed_reward_worker(make_run):
    text = fail(make_run, "ray::Reward", signal.SIGKILL).text
    assert "failed: reward_0 died (phase " in text


@pytest.mark.slow
def test_a_stopped_learner(make_run):
    text = fail(make_run, "ray::Learner", signal.SIGSTOP, "deadlines.update_s=8").text
    assert "failed: learner_0 did not answer in" in text
    assert "stopped (SIGSTOP)" in text
    assert "--- stacks of generator_0" in text


@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.nightly),
    ],
)
def test_an_interrupted_run_leaves_nothing_behind(make_run, number, status):
    run = make_run(*ENDLESS)
    run.wait_for_step(2)
    run.descendants()
    os.kill(run.process.pid, number)
    assert run.wait(60) == status
    assert run.survivors() == []
