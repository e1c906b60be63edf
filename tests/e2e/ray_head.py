"""A real one-node Ray cluster beside whatever else runs on the machine, and its end."""

from __future__ import annotations

import json
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

SCRIPTS = Path(sys.executable).parent
_START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 15.0
_REQUEST_TIMEOUT_S = 5.0
# What the provider of Ray's own tests calls the head, by its place among nodes.
_HEAD_ID = f"{0:05d}".rjust(56, "f")


class RayHead:
    """`ray start --head --block` with a token, ports and a folder of its own.

    It is a child in a session of its own, so that ending it touches no other Ray: `ray stop`
    would end all of them.

    Args:
        num_cpus: of the head.
        worker_types: resources of each type of node that an autoscaler adds, up to `max_workers` of
            all types. None: there is no autoscaler. Its nodes are raylets on this machine, as in
            Ray's own `cluster_utils.AutoscalingCluster`, whose configuration is not part of Ray's
            wheel, and which begins with `ray stop`.
        idle_minutes: time until a node without work goes.

    Attributes:
        environment: what a client of this cluster needs, and what the cluster was started with.
        address: host:port of the cluster itself, for `ray.init`.
        api_server: URL of dashboard and job server.
        metrics_url: Prometheus endpoint of the node.
    """

    def __init__(
        self,
        *,
        num_cpus: float = 2,
        worker_types: Mapping[str, Mapping[str, float]] | None = None,
        max_workers: int = 4,
        idle_minutes: float = 0.2,
    ) -> None:
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
        options = [f"--num-cpus={num_cpus:g}"]
        if worker_types is not None:
            settings = _autoscaling(self.address, num_cpus, worker_types)
            settings |= {"max_workers": max_workers, "idle_timeout_minutes": idle_minutes}
            file = self.folder / "autoscaling.json"
            file.write_text(json.dumps(settings))
            options.append(f"--autoscaling-config={file}")
            # The second autoscaler, as `ray up` and KubeRay have it in Ray 2.60.
            self.environment |= {
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
                "RAY_FAKE_CLUSTER": "1",
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
                "RAY_enable_autoscaler_v2": "1",
            }
        self._seen: dict[int, psutil.Process] = {}
        self._log = self.folder / "head.log"
        with self._log.open("w") as file:
            self._process = subprocess.Popen(
                [*_start_command(self.folder, ports), *options],
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


def _autoscaling(
    address: str, num_cpus: float, worker_types: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """The configuration of an autoscaler whose nodes are raylets on this machine."""
    module = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    steps = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray")
    return {
        "cluster_name": "test",
        # Not `fake_multinode`: its defaults are not part of Ray's wheel.
        "provider": {
            "type": "external",
            "module": module,
            "gcs_address": address,
            "head_node_id": _HEAD_ID,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {
                "resources": {"CPU": num_cpus},
                "node_config": {},
                "max_workers": 0,
            },
            **{
                name: {"resources": dict(resources), "node_config": {}, "min_workers": 0}
                for name, resources in worker_types.items()
            },
        },
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "worker_start_ray_commands": [],
        **{f"{step}_commands": [] for step in steps},
    }


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
