"""The start of a Ray of this machine alone, where Ray's own limits are too short."""

from __future__ import annotations

import os
import signal
import time
from contextlib import nullcontext
from typing import Any

import psutil
import pytest

from rlhf_ray.cluster.runtime import session
from rlhf_ray.cluster.runtime.ray_start import Guardian

SLOW = "The current node timed out during startup. This could happen because ..."


@pytest.fixture
def start(monkeypatch):
    """A start whose calls of `ray.init` end as told, one after the other; returns the calls."""
    monkeypatch.setattr(session, "local_start", lambda *_, **__: nullcontext())
    monkeypatch.setattr(session, "own_signal_handlers", nullcontext)

    def run(*ends: str) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def init(**options: Any) -> None:
            calls.append(options)
            if end := ends[len(calls) - 1]:
                raise Exception(end)

        monkeypatch.setattr(session.ray, "init", init)
        guardian: Any = None
        session.start_local(guardian, dashboard=False, log_to_driver=False)
        return calls

    return run


def test_a_slow_machine_gets_a_second_start(start):
    expected = {"address": "local", "include_dashboard": False, "log_to_driver": False}
    assert start("") == [expected]
    assert start(SLOW, "") == [expected, expected]


@pytest.mark.parametrize("ends", [(SLOW, SLOW), ("another failure",), (SLOW, "another failure")])
def test_other_failures_and_a_second_one_are_raised(start, ends):
    with pytest.raises(Exception, match=ends[-1].partition(".")[0]):
        start(*ends)


def test_a_stopped_guardian_is_continued():
    guardian, said = Guardian(), []
    process = psutil.Process(guardian._process.pid)
    try:
        for _ in range(2):
            os.kill(process.pid, signal.SIGSTOP)
            _wait_for(process, is_stopped=True)
            guardian.tend(said.append)
            _wait_for(process, is_stopped=False)
        os.kill(process.pid, signal.SIGSTOP)
    finally:
        started = time.monotonic()
        guardian.end()
    assert time.monotonic() - started < 10, "it was waited for, although it was stopped"
    assert len(said) == 1
    assert "was stopped (SIGSTOP)" in said[0]


def _wait_for(process: psutil.Process, *, is_stopped: bool) -> None:
    deadline = time.monotonic() + 20
    while (process.status() == psutil.STATUS_STOPPED) is not is_stopped:
        assert time.monotonic() < deadline, process.status()
        time.sleep(0.01)
