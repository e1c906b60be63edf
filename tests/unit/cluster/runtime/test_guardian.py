"""The guardian: what Ray has started ends with the driver, however the driver ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rlhf_ray.cluster.runtime import guardian

pytestmark = pytest.mark.unit_slow

# Like a raylet: leads a session, and starts an agent in it, a worker with a group of its own, and
# a daemon that leaves the session but keeps the environment.
LEADER = """
import subprocess, sys, time
sleep = [sys.executable, "-S", "-c", "import time; time.sleep(120)"]
agent = subprocess.Popen(sleep, env={})
worker = subprocess.Popen(sleep, process_group=0, env={})
daemon = subprocess.Popen(sleep, start_new_session=True)
print(agent.pid, worker.pid, daemon.pid, flush=True)
time.sleep(120)
"""
# Like a driver: starts guardian and leader, tells the one of the other, and waits.
DRIVER = f"""
import os, subprocess, sys, time
guardian = subprocess.Popen(
    [sys.executable, "-I", "-S", {guardian.__file__!r}, "MARK=x1"],
    stdin=subprocess.PIPE, start_new_session=True,
)
leader = subprocess.Popen(
    [sys.executable, "-S", "-c", {LEADER!r}], stdout=subprocess.PIPE, start_new_session=True,
    env={{**os.environ, "MARK": "x1"}},
)
guardian.stdin.write(b"%d\\n" % leader.pid)
guardian.stdin.flush()
started = leader.stdout.readline().decode().split()
print(guardian.pid, leader.pid, *started, flush=True)
sys.stdin.readline()
guardian.stdin.close()
guardian.wait()
print("done", flush=True)
"""


@pytest.fixture
def driver():
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    others = [psutil.Process(pid) for pid in pids]
    yield process, others
    for one in (process, *others):
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.communicate()


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def ignores(pid: int, number: int) -> bool:
    """Whether a process ignores a signal, as the kernel says."""
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def all_end(processes: list[psutil.Process], timeout_s: float = 20) -> bool:
    deadline = time.monotonic() + timeout_s
    while living(processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not living(processes)


def test_a_killed_driver_leaves_nothing(driver):
    process, others = driver
    assert len(living(others)) == 5
    process.kill()
    assert all_end(others)


def test_a_killed_driver_leaves_nothing_of_a_leader_that_died_before(driver):
    """The kernel ends GCS and raylet together with the driver, before the guardian looks."""
    process, others = driver
    os.kill(others[1].pid, signal.SIGKILL)
    process.kill()
    assert all_end(others)


def test_the_driver_can_end_it_and_live_on(driver):
    process, others = driver
    out, _ = process.communicate("\n", timeout=30)
    assert out == "done\n"
    assert all_end(others)


def test_signals_to_the_job_do_not_end_the_guardian(driver):
    process, others = driver
    # Its interpreter may still be starting. It is in a session of its own, so that a signal to the
    # job does not reach it even then.
    deadline = time.monotonic() + 30
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    while time.monotonic() < deadline and not all(ignores(others[0].pid, n) for n in numbers):
        time.sleep(0.01)
    for number in numbers:
        others[0].send_signal(number)
    time.sleep(0.3)
    assert len(living(others)) == 5
    process.kill()
    assert all_end(others)


def test_strangers_are_left_alone(driver):
    stranger = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    process, others = driver
    process.kill()
    assert all_end(others)
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()
