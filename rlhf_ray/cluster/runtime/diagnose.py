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


def dump_stacks(info: ProcessInfo) -> str:
    """Python stacks of all threads of a living process; a sentence if it shows none."""
    if not psutil.pid_exists(info.pid):
        return "the process is gone"
    if psutil.Process(info.pid).status() == psutil.STATUS_STOPPED:
        return "the process is stopped (SIGSTOP) and cannot answer"
    path = Path(info.stderr_path)
    if not path.is_file():
        return "its standard error is not a file, so its stacks cannot be read"
    before = path.stat().st_size
    os.kill(info.pid, signal.SIGUSR1)
    deadline = time.monotonic() + _STACK_WAIT_S
    while time.monotonic() < deadline:
        time.sleep(0.05)
        if path.stat().st_size > before:
            time.sleep(0.1)  # the rest of the threads
            with path.open(errors="replace") as file:
                file.seek(before)
                return _own_stacks(file.read())
    return "it did not write its stacks"


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


def on_node(node_id: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function of this module on a node; directly where that is the driver's own.

    Raises:
        ray.exceptions.RayError: the node is gone, or did not answer in time.
    """
    if node_id == ray.get_runtime_context().get_node_id():
        return function(*arguments)
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task: Any = ray.remote(num_cpus=0, max_retries=0)(function)
    return ray.get(
        task.options(scheduling_strategy=strategy).remote(*arguments), timeout=_REMOTE_TIMEOUT_S
    )


def on_nodes(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Run a function of this module on several nodes at once, and wait for all; results are lost.

    A node that is gone, or does not answer in time, is passed over.

    Args:
        arguments: the one argument of the function, by node.
    """
    own = ray.get_runtime_context().get_node_id()
    task: Any = ray.remote(num_cpus=0, max_retries=0)(function)
    under_way = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            argument
        )
        for node, argument in arguments.items()
        if node != own
    ]
    if own in arguments:
        function(arguments[own])
    if under_way:
        ray.wait(under_way, num_returns=len(under_way), timeout=_REMOTE_TIMEOUT_S)


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
