"""One run of the command as a process: its output, its actors, its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from rlhf_ray.config.keys.choices import group_choices
from rlhf_ray.config.keys.readers import is_choice_read, is_read

REPOSITORY = Path(__file__).resolve().parents[2]
# Small sizes; every role on 2 cores. Rewards differ between samples, so that something is learnt.
SMALL = (
    "data=arithmetic",
    "generation=cpu",
    "training=cpu",
    "generation.kv_cache_gib=0.1",
    "generation.max_response_tokens=8",
    "generation.max_num_seqs=32",
    "generation.max_num_batched_tokens=512",
    "data.max_prompt_tokens=48",
    "reward.functions=[{path: length, arguments: {target: 6}}]",
    "prompts_per_step=2",
    "samples_per_prompt=4",
    "training.learning_rate=1e-3",
)
# What depends on the timing of processes: seconds, and what the engines' schedulers did.
TIMES = ("time/", "engine/")


def _read(settings: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The settings that the stage of the overrides reads; it refuses others."""
    stage = next((text[6:] for text in overrides if text.startswith("stage=")), "rl")
    keys = [setting.partition("=")[0] for setting in settings]
    are_read = [(is_read if "." in key else _is_read_without_dot)(key, stage) for key in keys]
    return [setting for setting, is_its in zip(settings, are_read, strict=True) if is_its]


def _is_read_without_dot(name: str, stage: str) -> bool:
    return is_choice_read(name, stage) if name in group_choices() else is_read(name, stage)


class Run:
    """`python -m rlhf_ray.main`, started at once."""

    def __init__(self, model: Path, output: Path, overrides: Sequence[str]) -> None:
        self.output = output
        self.log = output.with_name(f"{output.name}-{time.monotonic_ns()}.log")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "rlhf_ray.main", f"output_dir={output}"]
        command += [*_read((f"model.path={model}", *SMALL), overrides), *overrides]
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                # A shell that starts the tests in the background has SIGINT ignored, and
                # every child would inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self._seen: dict[int, psutil.Process] = {}

    @property
    def text(self) -> str:
        return self.log.read_text()

    def wait(self, timeout_s: float) -> int:
        """The exit status, in time."""
        return self.process.wait(timeout=timeout_s)

    def succeed(self, timeout_s: float = 240) -> Run:
        status = self.wait(timeout_s)
        assert status == 0, f"exit status {status}:\n{self.text[-6000:]}"
        return self

    def wait_for_step(self, step: int, timeout_s: float = 240) -> None:
        self.wait_until(lambda: f"step {step}/" in self.text, timeout_s)

    def wait_until(self, holds: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert self.process.poll() is None, f"ended early:\n{self.text[-6000:]}"
            assert time.monotonic() < deadline, f"not after {timeout_s} s:\n{self.text[-6000:]}"
            time.sleep(0.05)

    def descendants(self) -> list[psutil.Process]:
        """Every process of the run; remembered, also when its parent is gone."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            self._seen[child.pid] = child
        return list(self._seen.values())

    def process_of(self, title: str) -> psutil.Process:
        """The one process whose title contains this, such as `ray::Learner`."""
        found = [p for p in self.descendants() if title in " ".join(p.cmdline())]
        assert found, [p.cmdline() for p in self.descendants()]
        return found[0]

    def survivors(self, timeout_s: float = 15) -> list[str]:
        """Processes of the run that are still there after some time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not [p for p in self._seen.values() if _lives(p)]:
                return []
            time.sleep(0.1)
        return [" ".join(p.cmdline()) for p in self._seen.values() if _lives(p)]

    def metrics(self) -> list[dict[str, float]]:
        lines = (self.output / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def startup(self) -> dict[str, Any]:
        return json.loads((self.output / "startup.json").read_text())

    def rollouts(self, step: int) -> list[dict[str, Any]]:
        path = self.output / "rollouts" / f"step_{step:06}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def end(self) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=10)
        for process in self._seen.values():
            if _lives(process):
                process.kill()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def without_times(metrics: list[dict[str, float]]) -> list[dict[str, float]]:
    """What two runs must have in common."""
    return [
        {name: value for name, value in row.items() if not name.startswith(TIMES)}
        for row in metrics
    ]
