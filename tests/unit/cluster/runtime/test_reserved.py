"""The wait for resources that other jobs of a cluster hold."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_ray.cluster.runtime import session


@pytest.mark.parametrize(("num_polls", "num_said"), [(3, 0), (40, 1)])
def test_a_long_wait_for_other_jobs_is_said_once(monkeypatch, num_polls: int, num_said: int):
    said: list[str] = []
    ready = itertools.chain([False] * num_polls, [True])
    seconds = itertools.count()
    monkeypatch.setattr(session, "_is_ready", lambda _: next(ready))
    monkeypatch.setattr(session, "missing", lambda *_: [])
    monkeypatch.setattr(session, "_nodes", list)
    monkeypatch.setattr(session.time, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr(session, "current_handler", lambda: SimpleNamespace(say=said.append))
    nothing: Any = None
    session._wait_for(nothing, nothing, wait_s=0.0, timeout_s=600.0)
    assert len(said) == num_said
    assert all("600 s for CPUs and GPUs that other jobs" in line for line in said)
