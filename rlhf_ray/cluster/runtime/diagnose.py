"""Log tails and Python stacks of actors, read on the node where each one lives."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlhf_ray.cluster.runtime.process import ProcessInfo, ProcessKey

_TAIL_BYTES = 20_000
_STACK_WAIT_S = 1.0
_REMOTE_TIMEOUT_S = 20.0
_RAY_FRAMES = ("/ray/_private/", "/ray/util/tracing/")
# Frames of threads that wait for work.
_IDLE_FRAMES = ("/threading.py", "/concurrent/futures/thread.py", "/site-packages/ray/")


def tail_log(info: ProcessInfo, num_lines: int) -> str:
    """The last lines that a process wrote to stderr and stdout, dead or alive."""
    parts = []
    for path in (info.stdout_path, info.stderr_path):
        lines = [line for line in _read_end(path).splitlines() if not line.startswith(":")]
        parts.extend(lines[-num_lines:])
    return "\n".join(parts[-num_lines:])


def dump_stacks(infos: Sequence[ProcessInfo]) -> list[str]:
    """Python stacks of all threads of processes of this node, or the reason why there are none.

    All processes are asked at once: together they take as long as one.
    """
    sizes: dict[int, int] = {}
    stacks: dict[int, str] = {}
    for index, info in enumerate(infos):
        if reason := _silent_because(info):
            stacks[index] = reason
            continue
        sizes[index] = Path(info.stderr_path).stat().st_size
        os.kill(info.pid, signal.SIGUSR1)
    deadline = time.monotonic() + _STACK_WAIT_S
    written: set[int] = set()
    while len(written) < len(sizes) and time.monotonic() < deadline:
        time.sleep(0.05)
        written = {i for i, n in sizes.items() if Path(infos[i].stderr_path).stat().st_size > n}
    if written:
        time.sleep(0.1)  # the rest of the threads
    for index, size in sizes.items():
        # One that died was perhaps not gone yet when it was asked.
        stacks[index] = _silent_because(infos[index]) or "it did not write its stacks"
        if index in written:
            with Path(infos[index].stderr_path).open(errors="replace") as file:
                file.seek(size)
                stacks[index] = _own_stacks(file.read())
    return [stacks[index] for index in range(len(infos))]


def _silent_because(info: ProcessInfo) -> str | None:
    """The reason why a process shows no stacks; None if it can be asked."""
    if not psutil.pid_exists(info.pid):
        return "the process is gone"
    if psutil.Process(info.pid).status() == psutil.STATUS_STOPPED:
        return "the process is stopped (SIGSTOP) and cannot answer"
    if not Path(info.stderr_path).is_file():
        return "its standard error is not a file, so its stacks cannot be read"
    return None


def kill_processes(keys: Sequence[ProcessKey]) -> int:
    """SIGKILL what is left of these processes; how many there were."""
    killed = 0
    for pid, created in keys:
        try:
            process = psutil.Process(pid)
            if process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE:
                process.kill()
                killed += 1
        except psutil.NoSuchProcess:
            continue
    return killed


def on_nodes(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    timeout_s: float = _REMOTE_TIMEOUT_S,
) -> dict[str, Any]:
    """Run a function of this module on several nodes at once, directly on the driver's own.

    Args:
        arguments: the one argument of the function, by node.
        timeout_s: for all of them together.

    Returns:
        results by node; a `RayError` or `OSError` for a node that is gone, failed or was late.
    """
    own = ray.get_runtime_context().get_node_id()
    task: Any = ray.remote(num_cpus=0, max_retries=0)(function)
    under_way = {
        node: task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(argument)
        for node, argument in arguments.items()
        if node != own
    }
    deadline = time.monotonic() + timeout_s
    results: dict[str, Any] = {}
    if own in arguments:
        try:
            results[own] = function(arguments[own])
        except OSError as error:
            results[own] = error
    for node, reference in under_way.items():
        try:
            results[node] = ray.get(reference, timeout=max(0.0, deadline - time.monotonic()))
        except RayError as error:
            results[node] = error
    return results


def _read_end(path: str) -> str:
    if not path or not Path(path).is_file():
        return ""
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        return file.read().decode(errors="replace")


def _own_stacks(stacks: str) -> str:
    """Threads that do something, without the frames that every Ray process has."""
    threads = []
    for thread in stacks.split("\n\n"):
        headline, *frames = thread.strip().splitlines() or [""]
        frames = [frame for frame in frames if not any(part in frame for part in _RAY_FRAMES)]
        if any(not any(part in frame for part in _IDLE_FRAMES) for frame in frames):
            threads.append("\n".join([headline, *frames]))
    return "\n".join(threads) or "idle: waiting for work"
