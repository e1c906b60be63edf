"""launch/wait_for_nodes.py: it waits as long as it was told, and no longer.

tests/e2e/test_job_submit.py runs it against a real cluster.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest

from tests.launch.load_script import LAUNCH, load_script

TIMEOUT_S = 3.0
# The start of an interpreter, and the end of one that hangs.
MARGIN_S = 5.0


@pytest.fixture
def script():
    return load_script("wait_for_nodes")


def test_a_head_that_never_comes_ends_it_at_the_deadline():
    with socket.socket() as silent:
        # Accepts connections and says nothing: worse than a port where nobody listens.
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, str(LAUNCH / "wait_for_nodes.py"), "--address", address]
        started = time.monotonic()
        done = subprocess.run(
            [*command, "--nodes", "2", "--timeout-s", str(TIMEOUT_S)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        took_s = time.monotonic() - started
    assert done.returncode == 1
    assert "fewer than 2 nodes after 3 s" in done.stderr
    assert f"0 of 2 nodes at {address}" in done.stdout
    assert TIMEOUT_S <= took_s < TIMEOUT_S + MARGIN_S


def test_it_ends_as_soon_as_all_nodes_are_there(script, monkeypatch, capsys):
    counts = iter([0, 1, 1, 3])
    monkeypatch.setattr(script, "count_nodes", lambda address, timeout_s: next(counts))
    monkeypatch.setattr(script, "POLL_INTERVAL_S", 0.01)
    assert script.wait_for_nodes("head:6379", 3, timeout_s=30)
    # A line for every change, none for every look.
    assert capsys.readouterr().out.splitlines() == [
        f"wait_for_nodes: {number} of 3 nodes at head:6379" for number in (0, 1, 3)
    ]


def test_every_look_has_what_is_left_of_the_time(script, monkeypatch):
    seen = []

    def count(address, timeout_s):
        seen.append(timeout_s)
        return 0

    monkeypatch.setattr(script, "count_nodes", count)
    monkeypatch.setattr(script, "POLL_INTERVAL_S", 0.05)
    assert not script.wait_for_nodes("head:6379", 1, timeout_s=0.3)
    assert len(seen) > 2
    assert seen == sorted(seen, reverse=True)
    assert 0 < seen[-1] < seen[0] <= 0.3
