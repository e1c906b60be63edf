"""The base of actor processes: identity, an address, stacks on request.

It imports Ray where it is used: files of roles stand on it, and a plan reads them without Ray.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

# A process by id and time of creation, so that a reused id is not mistaken for it.
ProcessKey = tuple[int, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessInfo:
    """The place of an actor's process, for examining and ending it from outside.

    Attributes:
        created: time of the process' creation: a process id may be used again.
        stdout_path, stderr_path: Ray's log files of the process; empty where not files.
        gpu_ids: GPUs that Ray gave to the actor.
    """

    pid: int
    created: float
    node_id: str
    stdout_path: str
    stderr_path: str
    gpu_ids: tuple[str, ...]


class ActorProcess:
    """Base of every actor class; its constructor comes before any heavy import."""

    def __init__(self) -> None:
        from rlhf_ray.observe.output_capture import quiet_worker

        quiet_worker()

    def process_info(self) -> ProcessInfo:
        """Identify this process, and let SIGUSR1 write its Python stacks to stderr."""
        import psutil
        import ray

        # From C, so that it answers also while the interpreter is stuck in a library.
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        context = ray.get_runtime_context()
        return ProcessInfo(
            pid=os.getpid(),
            created=psutil.Process().create_time(),
            node_id=context.get_node_id(),
            stdout_path=_file_behind(1),
            stderr_path=_file_behind(2),
            gpu_ids=tuple(context.get_accelerator_ids()["GPU"]),
        )

    def process_family(self) -> tuple[ProcessKey, ...]:
        """This process and all that it has started, for the time when it cannot be asked."""
        import psutil

        me = psutil.Process()
        return tuple((p.pid, p.create_time()) for p in (me, *me.children(recursive=True)))

    def reserve_address(self) -> tuple[str, int]:
        """Address of this node and a port that was free a moment ago."""
        import ray

        with socket.socket() as listener:
            listener.bind(("", 0))
            return ray.util.get_node_ip_address(), listener.getsockname()[1]


def _file_behind(descriptor: int) -> str:
    link = Path(f"/proc/self/fd/{descriptor}")
    target = os.readlink(link) if link.exists() else ""
    return target if target.startswith("/") and Path(target).is_file() else ""
