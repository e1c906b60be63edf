"""Processes that reward functions leave behind end with their call, their process, or the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rlhf_ray.records import FailureKind
from rlhf_ray.rewards.functions.family import _children_by_scan, children, family, private_bytes

pytestmark = pytest.mark.unit_slow

HOSTILE = str(Path(__file__).parent / "hostile_rewards.py")
REPOSITORY = Path(__file__).parents[4]


def noted(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()]


def wait_until_ended(pids: list[int], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while alive := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"{alive} still run"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_daemon_ends_with_the_call_and_the_functions_go_on(
    make_worker, make_group, tmp_path
) -> None:
    file = tmp_path / "pids"
    worker = make_worker({"path": f"{HOSTILE}:daemonises", "arguments": {"file": str(file)}})
    group, summary = worker.score(make_group("a", "b"))
    assert (group.rewards.tolist(), summary.failures) == ([1.0, 1.0], ())
    pids = noted(file)
    assert len(pids) == 2
    assert not any(map(is_alive, pids))
    assert worker._process.num_ended_processes >= 2


@pytest.mark.parametrize(
    ("response", "kind"),
    [("crash", FailureKind.REWARD_WORKER_LOST), ("hang", FailureKind.REWARD_TIMEOUT)],
)
def test_a_daemon_ends_with_the_process_of_the_functions(
    make_worker, make_group, tmp_path, response: str, kind: FailureKind
) -> None:
    file = tmp_path / "pids"
    entry = {"path": f"{HOSTILE}:daemonises", "arguments": {"file": str(file)}}
    worker = make_worker(entry, timeout_s=3.0)
    _, summary = worker.score(make_group(response))
    assert [failure.kind for failure in summary.failures] == [kind]
    assert not any(map(is_alive, noted(file)))


def test_a_helper_that_is_kept_outlives_a_call_and_ends_with_close(make_worker, make_group) -> None:
    worker = make_worker(f"{HOSTILE}:KeepsHelper")
    for _ in range(2):
        group, _ = worker.score(make_group("a"))
        assert group.rewards.tolist() == [7.0]
    started = psutil.Process().children(recursive=True)
    assert "cat" in {process.name() for process in started}
    worker.close()
    wait_until_ended([process.pid for process in started])


@pytest.mark.parametrize("killed", ["worker", "worker and guard"])
def test_a_daemon_ends_with_a_worker_that_is_killed(tmp_path, killed: str) -> None:
    file, script = tmp_path / "pids", tmp_path / "parent.py"
    entry = {"path": f"{HOSTILE}:daemonises", "arguments": {"file": str(file)}}
    script.write_text(
        "from rlhf_ray.config.groups.reward import RewardConfig\n"
        "from rlhf_ray.rewards.worker import RewardWorker\n"
        "from tests.unit.rewards.conftest import build_group\n"
        f"worker = RewardWorker(RewardConfig(functions=[{entry!r}], timeout_s=120))\n"
        "worker.start()\n"
        "worker.score(build_group('hang'))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment)
    while not file.exists() or not file.read_text().endswith("\n"):
        assert parent.poll() is None
        time.sleep(0.05)
    started = psutil.Process(parent.pid).children(recursive=True)
    (guard,) = psutil.Process(parent.pid).children()
    # As Ray ends a worker: itself first or its direct children first.
    if killed == "worker and guard":
        guard.kill()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait(10)
    wait_until_ended([process.pid for process in started] + noted(file))


@pytest.mark.parametrize("response", ["kill", "stop"])
def test_a_keeper_that_is_lost_is_replaced(make_worker, make_group, monkeypatch, response) -> None:
    monkeypatch.setattr("rlhf_ray.rewards.functions.process._KILL_TIMEOUT_S", 1.0)
    worker = make_worker(f"{HOSTILE}:stops_keeper", timeout_s=2.0)
    _, summary = worker.score(make_group(response))
    assert summary.failures[0].kind in (FailureKind.REWARD_WORKER_LOST, FailureKind.REWARD_TIMEOUT)
    started = psutil.Process().children(recursive=True)
    worker.close()
    wait_until_ended([process.pid for process in started])


@pytest.mark.parametrize("response", ["kill", "stop"])
def test_a_daemon_ends_with_a_keeper_that_is_lost(
    make_worker, make_group, monkeypatch, tmp_path, response: str
) -> None:
    monkeypatch.setattr("rlhf_ray.rewards.functions.process._KILL_TIMEOUT_S", 1.0)
    file = tmp_path / "pids"
    entry = {"path": f"{HOSTILE}:daemonises_and_ends_keeper", "arguments": {"file": str(file)}}
    worker = make_worker(entry, timeout_s=2.0)
    worker.score(make_group(response))
    wait_until_ended(noted(file))


def test_a_fork_that_returns_gives_no_second_answer(make_worker, make_group) -> None:
    worker = make_worker(f"{HOSTILE}:forks")
    for _ in range(2):
        group, summary = worker.score(make_group("a", "b", "c"))
        assert (group.rewards.tolist(), summary.failures) == ([2.0] * 3, ())


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ("interrupt", "KeyboardInterrupt: stop"),
        ("exit", "SystemExit: stop"),
        ("generator", "GeneratorExit: stop"),
        ("cancelled", "CancelledError: stop"),
    ],
)
def test_what_is_no_exception_is_an_error_with_its_own_name(
    make_worker, make_group, response: str, message: str
) -> None:
    _, summary = make_worker(f"{HOSTILE}:raises").score(make_group(response))
    (failure,) = summary.failures
    assert failure.kind is FailureKind.REWARD_ERROR
    assert f"'raises': {message}" in failure.message or f".{message}" in failure.message
    assert "hostile_rewards.py, line" in failure.message


def test_a_family_is_found_with_and_without_the_kernel_s_lists() -> None:
    child = subprocess.Popen(["sh", "-c", "sleep 300 & wait"])
    try:
        deadline = time.monotonic() + 10
        while len(found := family(child.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(found) == 2
        assert children(child.pid) == found[1:] == _children_by_scan(child.pid)
        assert child.pid in children(os.getpid())
        assert private_bytes(found) > 0
    finally:
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        child.wait(10)
    assert (family(child.pid), private_bytes([child.pid])) == ([child.pid], 0)
