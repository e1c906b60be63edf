"""A server and its children end with the process that started the server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil

CHILD = """
import subprocess, time
from rlhf_ray.generation.parent_watch import end_group_with_stdin
end_group_with_stdin()
grandchild = subprocess.Popen(["sleep", "600"])
print(grandchild.pid, flush=True)
time.sleep(600)
"""
PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-c", {CHILD!r}], stdin=subprocess.PIPE, start_new_session=True
)
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_killed_parent_leaves_no_process():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    family = [int(parent.stdout.readline()) for _ in range(2)]
    assert all(psutil.pid_exists(pid) for pid in family)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait(timeout=10)
    deadline = time.monotonic() + 10
    while any(_lives(pid) for pid in family):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_process_that_refuses_ends_with_its_own_status():
    program = (
        "import sys, time\n"
        "from rlhf_ray.generation.parent_watch import end_group_with_stdin\n"
        "end_group_with_stdin()\n"
        "time.sleep(0.2)\n"
        "sys.exit(2)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, start_new_session=True
    )
    assert child.wait(timeout=60) == 2


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
