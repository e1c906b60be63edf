"""A worker that does what a test tells it to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from rlhf_ray.cluster.runtime.process import ActorProcess


class Puppet(ActorProcess):
    """Every way in which a worker can end or not end."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.settings = settings

    def answer(self, value: Any, after_s: float = 0.0) -> Any:
        time.sleep(after_s)
        return value

    def variables(self, names: list[str]) -> dict[str, str | None]:
        return {name: os.environ.get(name) for name in names}

    def two(self, value: Any) -> tuple[Any, Any]:
        return value, [value] * 3

    def fail(self, after_s: float = 0.0) -> None:
        time.sleep(after_s)
        print("a last word", flush=True)
        raise ValueError("the puppet has failed")

    def die(self, after_s: float = 0.0) -> None:
        time.sleep(after_s)
        print("a last word", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def stop(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def spawn(self) -> int:
        """A child that nobody waits for."""
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        return subprocess.Popen(command, start_new_session=True).pid

    def stream(self, values: list[Any], fail: bool = False) -> Iterator[Any]:
        for value in values:
            yield None
            yield value
        if fail:
            raise ValueError("the stream has failed")

    def reuse(self, num_items: int, num_bytes: int) -> Iterator[Any]:
        """Items that are all made in the same memory."""
        buffer = np.empty(num_bytes, dtype=np.uint8)
        for number in range(num_items):
            buffer[:] = number
            yield None
            yield buffer

    def score(self, *parts: Any) -> tuple[Any, Any]:
        """The parts of a group, and who has scored it; some parts do harm."""
        whole = [item for part in parts for item in (part if isinstance(part, list) else [part])]
        if "bad" in whole:
            raise ValueError("no such group")
        if "deadly" in whole:
            time.sleep(1)
            raise ConnectionError("the other rank is gone")
        rank = self.settings["rank"]
        return f"scored by {rank}", [*whole, rank]

    def join(self, group: list[Any]) -> None:
        """Another rank of the same scorer."""
        if "deadly" in group:
            self.die()

    def close(self) -> None:
        pass
