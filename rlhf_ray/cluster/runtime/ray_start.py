"""The start of Ray's processes, and the four places of Ray 2.60 that are changed for it.

No other file changes parts of Ray. Each change holds while `ray.init` runs:

- `services.ConsolePopen` starts a process in the session of the driver. A signal to the driver's
  group (`timeout`, a shell) then ends GCS and raylet before the driver can end in order. Here each
  process leads its own session. It can go when Ray has an option for it.
- `utils.set_sigterm_handler`: `ray.init` replaces the handler of SIGTERM by one that exits with
  status 15. It can go when Ray leaves handlers alone.
- `ray_constants.ENABLE_RAY_CLUSTER`: Ray's own switch for a Ray that listens on 127.0.0.1 only
  (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER, read when Ray is imported). `_node_ip_address="127.0.0.1"`
  would be the public way, but Ray replaces it by the address of the network.
- Without a dashboard three processes are not started: `Node.start_monitor` (for an autoscaler),
  `Node.start_log_monitor` (workers' output on the driver's screen), `services.start_api_server`.
  Their imports cost two seconds of a core just when workers start, and the first ends slowly. It
  can go when Ray has options for them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ray._private import node, ray_constants, services, utils

from rlhf_ray.cluster.runtime import guardian

_MARK = "RLHF_RAY_LOCAL"
_LOOPBACK_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_END_WAIT_S = 12.0
# A guardian that dies more often is killed on purpose, or cannot run here.
_MAX_STARTS = 3


class Guardian:
    """The driver's side of the guardian process; see `guardian`."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self._leaders: list[int] = []
        self._num_deaths = 0
        self._is_over = False
        self._has_said_stopped = False
        # The watch tends it, while the main thread notes and ends.
        self._lock = threading.Lock()
        self._start()

    def note(self, pid: int) -> None:
        """Tell it of a process that Ray's start has begun."""
        with self._lock:
            self._leaders.append(pid)
            self._tell(pid)

    def tend(self, say: Callable[[str], None]) -> None:
        """Start it again if it was killed, and continue it if it was stopped, and say so.

        Without it a killed driver leaves processes. Call it every second or so, from any thread.
        """
        with self._lock:
            if self._is_over or self._num_deaths > _MAX_STARTS:
                return
            if self._process.poll() is None:
                self._continue(say)
                return
            self._num_deaths += 1
            end = f"the process that ends Ray with this one, {self._process.pid}, has ended ("
            end += f"status {self._process.returncode}): "
            with suppress(OSError):
                self._input.close()
            if self._num_deaths > _MAX_STARTS:
                say(
                    f"{end}that was {self._num_deaths} times, so that it is not started again. The "
                    f"run goes on; if SIGKILL ends it, end what Ray leaves with `ray stop --force`"
                )
                return
            try:
                self._start()
            except OSError as error:
                say(f"{end}it cannot be started again: {error}; the run goes on without")
                return
            say(f"{end}another one was started, {self._process.pid}")
            for pid in self._leaders:
                self._tell(pid)

    def _continue(self, say: Callable[[str], None]) -> None:
        """Continue it if a signal has stopped it: it would not see the end of this process."""
        # After the name, which is in brackets and may hold anything: the state.
        stat = Path(f"/proc/{self._process.pid}/stat").read_bytes()
        if stat.rpartition(b")")[2].split()[0] != b"T":
            return
        self._process.send_signal(signal.SIGCONT)
        if not self._has_said_stopped:
            self._has_said_stopped = True
            say(
                f"the process that ends Ray with this one, {self._process.pid}, was stopped "
                f"(SIGSTOP): it was continued, and will be each time"
            )

    def dismiss(self) -> None:
        """Let it end the processes of Ray that are left, without waiting for it."""
        with self._lock:
            self._is_over = True
            with suppress(BrokenPipeError):
                self._input.close()
            self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Let it end what is left, and wait for its end."""
        self.dismiss()
        try:
            self._process.wait(_END_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", guardian.__file__, f"{_MARK}={self.mark}"],
            stdin=subprocess.PIPE,
            # It must not hold the driver's pipes open: `... | tee log` waits for all writers.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._input = self._process.stdin

    def _tell(self, pid: int) -> None:
        # If it was killed: `tend` tells the next one.
        with suppress(BrokenPipeError):
            self._input.write(b"%d\n" % pid)
            self._input.flush()


@contextmanager
def own_signal_handlers() -> Iterator[None]:
    """Keep `ray.init` from replacing the handler of SIGTERM."""
    with _replaced(utils, "set_sigterm_handler", lambda _handler: None):
        yield


@contextmanager
def local_start(watched_by: Guardian, *, dashboard: bool) -> Iterator[None]:
    """Let `ray.init` start processes in sessions of their own that listen on 127.0.0.1 only.

    Workers inherit the variables of `local_environment` from the raylet. As a runtime environment
    of the job they would cost seconds: Ray could then not use the workers that it starts first.
    """
    environment = {_MARK: watched_by.mark, _LOOPBACK_SWITCH: "0", **local_environment()}
    with ExitStack() as stack:
        if not dashboard:
            stack.enter_context(_replaced(node.Node, "start_monitor", lambda _node: None))
            stack.enter_context(_replaced(node.Node, "start_log_monitor", lambda _node: None))
            stack.enter_context(
                _replaced(services, "start_api_server", lambda *_, **__: ("", None))
            )
        stack.enter_context(_replaced(services, "ConsolePopen", _popen(watched_by.note)))
        stack.enter_context(_replaced(ray_constants, "ENABLE_RAY_CLUSTER", False))
        stack.enter_context(_environment(environment))
        yield


def local_environment() -> dict[str, str]:
    """Variables of the workers of a local Ray: its libraries, too, listen on 127.0.0.1 only."""
    chosen = {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    return {
        **{name: os.environ.get(name, value) for name, value in chosen.items()},
        # The project as this process sees it, also where it is run without an install.
        "PYTHONPATH": _import_path(),
    }


def _popen(note: Callable[[int], None]) -> type:
    class SessionPopen(services.ConsolePopen):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, start_new_session=True, **options)
            note(self.pid)

    return SessionPopen


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _import_path() -> str:
    package_parent = str(Path(__file__).resolve().parents[3])
    existing = os.environ.get("PYTHONPATH", "")
    return f"{package_parent}{os.pathsep}{existing}" if existing else package_parent
