"""Processes of reward functions end with the actor of the reward worker, however it ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray

from rlhf_ray.cluster.roles.rewards import RewardActor
from rlhf_ray.config.groups.reward import RewardConfig
from rlhf_ray.testing.fakes import make_group, make_prompt

TIMEOUT_S = 60
REWARD = '''
import os, subprocess, sys, time

DAEMON = """
import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
open(sys.argv[1], "w").write(f"{os.getpid()}\\\\n")
time.sleep(300)
"""


def leaves_a_daemon(sample, file):
    subprocess.run([sys.executable, "-S", "-c", DAEMON, file], check=True)
    time.sleep(300)
'''


@pytest.mark.parametrize(
    "end",
    [
        lambda worker, pid: ray.kill(worker),
        lambda worker, pid: os.kill(pid, signal.SIGKILL),
    ],
    ids=["ray.kill", "SIGKILL"],
)
def test_a_daemon_ends_with_the_actor(tmp_path: Path, end: Callable[[object, int], None]) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    file = tmp_path / "pid"
    arguments = {"file": str(file)}
    entry = {"path": f"{tmp_path}/reward.py:leaves_a_daemon", "arguments": arguments}
    settings = RewardConfig(functions=[entry], timeout_s=200)
    worker = ray.remote(RewardActor).options(num_cpus=0.1).remote(settings)
    ray.get(worker.start.remote(), timeout=TIMEOUT_S)
    pid = ray.get(worker.process_info.remote(), timeout=TIMEOUT_S).pid
    family = ray.get(worker.process_family.remote(), timeout=TIMEOUT_S)
    worker.score.remote(make_group(make_prompt(0), (0,), version=0))
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"))
    daemon = int(file.read_text())
    started = [daemon, *(member for member, _ in family)]
    assert len(started) == 5
    assert all(map(is_alive, started))
    end(worker, pid)
    wait_until(lambda: not any(map(is_alive, started)))


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
