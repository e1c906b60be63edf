"""A real one-node Ray cluster beside whatever else runs on the machine, and its end."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import psutil

SCRIPTS = Path(sys.executable).parent
_START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 15.0
_REQUEST_TIMEOUT_S = 5.0


class RayHead:
    """`ray start --head --block` with a token, ports and a folder of its own.

    It is a child in a session of its own, so that ending it touches no other Ray: `ray stop`
    would end all of them.

    Attributes:
        environment: what a client of this cluster needs, and what the cluster was started with.
        address: host:port of the cluster itself, for `ray.init`.
        api_server: URL of dashboard and job server.
        metrics_url: Prometheus endpoint of the node.
    """

    def __init__(self) -> None:
        # Under /tmp itself: Ray's socket paths may have 107 bytes, and pytest's are long.
        self.folder = Path(tempfile.mkdtemp(prefix="rr_", dir="/tmp"))
        ports = _free_ports(5)
        self.address = f"127.0.0.1:{ports[0]}"
        self.api_server = f"http://127.0.0.1:{ports[1]}"
        self.metrics_url = f"http://127.0.0.1:{ports[2]}/metrics"
        token = self.folder / "auth_token"
        token.write_text(secrets.token_hex(32))
        self.environment = {
            **os.environ,
            "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
            "RAY_API_SERVER_ADDRESS": self.api_server,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            # Gauges are exported every ten seconds otherwise, and a test's run may be shorter.
            "RAY_metrics_report_interval_ms": "1000",
        }
        self._seen: dict[int, psutil.Process] = {}
        self._log = self.folder / "head.log"
        with self._log.open("w") as file:
            self._process = subprocess.Popen(
                _start_command(self.folder, ports),
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until the job server answers."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()[-4000:]
            assert time.monotonic() < deadline, self._log.read_text()[-4000:]
            time.sleep(0.2)

    def metrics_text(self) -> str:
        """What the Prometheus endpoint shows now; empty where it does not answer."""
        self.remember_processes()
        try:
            with urllib.request.urlopen(self.metrics_url, timeout=_REQUEST_TIMEOUT_S) as answer:
                return answer.read().decode()
        except OSError:
            return ""

    def remember_processes(self) -> None:
        """Note all descendants, for `end`: who outlives its parent is not found later."""
        for process in psutil.Process(self._process.pid).children(recursive=True):
            self._seen[process.pid] = process

    def command_lines(self) -> list[str]:
        """Of all living descendants, also of those whose parent is gone."""
        self.remember_processes()
        return [_command_line(process) for process in self._seen.values() if _lives(process)]

    def end(self) -> list[str]:
        """Ends the cluster and removes its folder.

        Returns:
            command lines of processes that had to be killed because they did not end with it.
        """
        if self._process.poll() is None:
            self.remember_processes()
            self._process.terminate()
        _, left = psutil.wait_procs(list(self._seen.values()), timeout=_END_TIMEOUT_S)
        names = [_command_line(process) for process in left]
        for process in left:
            process.kill()
        if _group_exists(self._process.pid):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=_END_TIMEOUT_S)
        shutil.rmtree(self.folder, ignore_errors=True)
        return names

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.api_server}/api/version", timeout=_REQUEST_TIMEOUT_S)
        except urllib.error.HTTPError:
            return True  # It answers, and asks for the token.
        except OSError:
            return False
        return True


def _start_command(folder: Path, ports: Sequence[int]) -> list[str]:
    head, dashboard, metrics, agent, client = ports
    return [
        str(SCRIPTS / "ray"),
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        "--include-dashboard=true",
        "--num-cpus=2",
        "--object-store-memory=200000000",
        f"--temp-dir={folder}",
        f"--port={head}",
        f"--dashboard-port={dashboard}",
        f"--metrics-export-port={metrics}",
        f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}",
        # Any free port: Ray's own range is the same for every cluster on a machine.
        "--min-worker-port=0",
        "--max-worker-port=0",
    ]


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    listeners = [socket.socket() for _ in range(count)]
    try:
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()


def _group_exists(group_id: int) -> bool:
    try:
        os.killpg(group_id, 0)
    except ProcessLookupError:
        return False
    return True


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _command_line(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())}"
    except psutil.NoSuchProcess:
        return f"{process.pid} (just ended)"
