"""Ray's processes on this node, seen through the system, and its GCS, asked over the network.

Nothing here waits for Ray: the processes are read from /proc, and the GCS is asked by a thread.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from dataclasses import dataclass

import psutil
from ray._private.worker import global_worker
from ray._raylet import GcsClient
from ray.exceptions import RayError

_ASK_EVERY_S = 2.0
# Part of the command line, before and after the process has given itself a title.
_AGENTS = {
    "DashboardAgent": "dashboard agent",
    "dashboard/agent.py": "dashboard agent",
    "RuntimeEnvAgent": "runtime env agent",
    "runtime_env/agent/main.py": "runtime env agent",
}


KILLED = "was killed by SIGKILL"


@dataclass(frozen=True, kw_only=True, slots=True)
class RayProcess:
    """One process of Ray on this node.

    Attributes:
        title: as in messages, such as "raylet".
        own: the child process that it is, if this driver started it: it has an exit status.
    """

    title: str
    process: psutil.Process
    own: subprocess.Popen[bytes] | None = None

    def end(self) -> str | None:
        """The manner of its end, in words; None while it is there."""
        if words := self._exit():
            return words
        if self.process.is_running() and self._state() != psutil.STATUS_ZOMBIE:
            return None
        # It may have ended between the two looks: its status is there now.
        return self._exit() or "is gone"

    def _exit(self) -> str | None:
        status = self.own.poll() if self.own else None
        if status is None:
            return None
        return (
            f"was killed by {signal.Signals(-status).name}"
            if status < 0
            else f"ended with status {status}"
        )

    def is_stopped(self) -> bool:
        """Whether a signal (SIGSTOP) has stopped it."""
        return self._state() == psutil.STATUS_STOPPED

    def _state(self) -> str:
        try:
            return self.process.status()
        except psutil.NoSuchProcess:
            return psutil.STATUS_ZOMBIE

    def __str__(self) -> str:
        return f"{self.title} (process {self.process.pid})"


def ray_processes() -> list[RayProcess]:
    """The processes of the connected Ray that this node cannot do without, agents first.

    An agent comes before its raylet, which ends itself when one of them is gone.
    """
    node = global_worker.node
    raylet = _raylet_of(node.raylet_socket_name)
    found: list[RayProcess] = []
    if raylet is not None:
        for child in raylet.process.children():
            try:
                line = " ".join(child.cmdline())
            except psutil.NoSuchProcess:  # Also a zombie: a short helper of the raylet has ended.
                continue
            title = next((title for part, title in _AGENTS.items() if part in line), None)
            if title:
                found.append(RayProcess(title=title, process=child))
    own = {infos[0].process.pid: infos[0].process for infos in node.all_processes.values()}
    servers = [RayProcess(title=p.name(), process=p) for p in _servers(own)]
    if raylet is not None and raylet.process.pid not in own:
        servers.append(raylet)
    return found + [
        RayProcess(title=s.title, process=s.process, own=own.get(s.process.pid)) for s in servers
    ]


def logs_folder() -> str:
    """Folder of the logs of the connected Ray on this node."""
    return global_worker.node.get_logs_dir_path()


def _servers(own: dict[int, subprocess.Popen[bytes]]) -> list[psutil.Process]:
    processes = [psutil.Process(pid) for pid in own]
    return [process for process in processes if process.name() in ("gcs_server", "raylet")]


def _raylet_of(socket_name: str) -> RayProcess | None:
    for process in psutil.process_iter(["name", "cmdline"]):
        facts = process.info
        if facts["name"] == "raylet" and any(socket_name in a for a in facts["cmdline"] or ()):
            return RayProcess(title="raylet", process=process)
    return None


class GcsProbe:
    """A thread that asks a GCS again and again whether it is there.

    Attributes:
        error: the words of the last answer that was a refusal; empty if it was none.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.error = ""
        self._answered_at = time.monotonic()
        self._first = threading.Event()
        self._end = threading.Event()
        # A daemon: a call that never returns must not hold up the end of the process.
        threading.Thread(target=self._ask, name="gcs-probe", daemon=True).start()

    def answers_within(self, timeout_s: float) -> bool:
        """Whether it has answered for the first time."""
        return self._first.wait(timeout_s)

    def silent_s(self) -> float:
        """Seconds since its last answer."""
        return time.monotonic() - self._answered_at

    def close(self) -> None:
        """Ask no more."""
        self._end.set()

    def _ask(self) -> None:
        client = None
        while not self._end.wait(_ASK_EVERY_S if self._first.is_set() else 0.2):
            try:
                client = client or GcsClient(address=self.address)
                client.internal_kv_keys(b"rlhf_ray", namespace=b"rlhf_ray", timeout=_ASK_EVERY_S)
            except (RayError, RuntimeError, TimeoutError) as error:
                self.error = " ".join(str(error).split())[:300]
            else:
                self._answered_at = time.monotonic()
                self._first.set()
