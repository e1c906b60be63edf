"""Which of Ray's processes is named when one is gone, or several at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rlhf_ray.cluster.runtime.ray_processes import KILLED, GcsProbe
from rlhf_ray.cluster.runtime.watch import Watch
from rlhf_ray.interrupts import EndOnSignal


@dataclass
class Process:
    title: str
    how: str | None = None

    def end(self) -> str | None:
        return self.how

    def __str__(self) -> str:
        return self.title


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ([None, None, None], None),
        (["is gone", None, None], "Ray's dashboard agent on this node is gone, and no worker"),
        (
            ["is gone", "is gone", None],
            "Ray's dashboard agent on this node is gone (as is runtime env agent), and no worker",
        ),
        (["is gone", "is gone", KILLED], "Ray's raylet on this node was killed by SIGKILL, and"),
    ],
)
def test_all_that_may_be_the_cause_are_named(ends, words, tmp_path: Path):
    watch = Watch(
        silence_s=1,
        handler=EndOnSignal(),
        error_log=tmp_path / "error.log",
        on_forced_end=lambda: None,
    )
    titles = ("dashboard agent", "runtime env agent", "raylet")
    processes = [Process(title, how) for title, how in zip(titles, ends, strict=True)]
    probe = cast(GcsProbe, SimpleNamespace(close=lambda: None))
    watch.look_at(cast(Any, processes), probe, logs="logs")
    found = watch.find_lost()
    assert (found is None) if words is None else words in str(found)
