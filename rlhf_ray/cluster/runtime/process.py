"""The base of actor processes: identity, an address, stacks on request.

It imports Ray where it is used: files of roles stand on it, and a plan reads them without Ray.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rlhf_ray.cluster.runtime.worker_environment import chosen_address

# A process by id and time of creation, so that a reused id is not mistaken for it.
ProcessKey = tuple[int, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessInfo:
    """The place of an actor's process, for examining and ending it from outside.

    Attributes:
        created: time of the process' creation: a process id may be used again.
        stdout_path, stderr_path: Ray's log files of the process; empty where not files.
        gpu_ids: GPUs that Ray gave to the actor.
        load_s: seconds from the actor's creation until it answered: its imports.
    """

    pid: int
    created: float
    node_id: str
    stdout_path: str
    stderr_path: str
    gpu_ids: tuple[str, ...]
    load_s: float = 0.0


class ActorProcess:
    """Base of every actor class; its constructor comes before any heavy import.

    Attributes:
        concurrency_groups: number of calls at a time by the name of a group of Ray: calls of a
            group do not queue behind others, and run in a thread of their own.
        max_calls: number of other calls at a time; 0 leaves Ray's own number.
    """

    concurrency_groups: ClassVar[dict[str, int]] = {}
    max_calls: ClassVar[int] = 0
    _listener: socket.socket | None = None

    def __init__(self) -> None:
        from rlhf_ray.observe.output_capture import quiet_worker

        self._created = time.monotonic()
        quiet_worker()

    def process_info(self) -> ProcessInfo:
        """Identify this process, and let SIGUSR1 write its Python stacks to stderr."""
        import psutil
        import ray

        # Asked of every worker before any loads a model, so that a node without it is found early.
        chosen_address(os.environ)
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
            load_s=time.monotonic() - self._created,
        )

    def process_family(self) -> tuple[ProcessKey, ...]:
        """This process and all that it has started, for the time when it cannot be asked."""
        import psutil

        me = psutil.Process()
        return tuple((p.pid, p.create_time()) for p in (me, *me.children(recursive=True)))

    def reserve_address(self) -> tuple[str, int]:
        """Listen at a free port of this node's address, and return both; see `take_listener`."""
        import ray

        address = chosen_address(os.environ) or ray.util.get_node_ip_address()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        # Kept open until it is used: another process could take a port that is free for a moment.
        self._listener = socket.create_server((address, 0), family=family)
        return address, self._listener.getsockname()[1]

    def take_listener(self) -> socket.socket | None:
        """The socket of `reserve_address`, for a new owner; None if there is none."""
        listener, self._listener = self._listener, None
        return listener


def _file_behind(descriptor: int) -> str:
    link = Path(f"/proc/self/fd/{descriptor}")
    target = os.readlink(link) if link.exists() else ""
    return target if target.startswith("/") and Path(target).is_file() else ""
