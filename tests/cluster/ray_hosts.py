"""A Ray cluster with a node on each host, and jobs on it, as docs/launch.md starts them."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.cluster.hosts import Host, Hosts

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sys.executable).parent
GCS_PORT, DASHBOARD_PORT, METRICS_PORT = 6379, 8265, 8080
# Three times what it takes on two busy cores.
_START_S = 120.0
_ASK_S = 20.0
_POLL_S = 0.3
_ACTOR = re.compile(r"ray::(?P<name>\w+)Actor")
_STATUS = """
import sys, urllib.error, urllib.request
try:
    request = urllib.request.Request(sys.argv[1])
    if len(sys.argv) > 2:
        request.add_header("Authorization", "Bearer " + open(sys.argv[2]).read())
    with urllib.request.urlopen(request, timeout=10) as answer:
        print(answer.status, answer.read().decode(), sep="\\n")
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode(), sep="\\n")
except OSError as error:
    print(0, error, sep="\\n")
"""


class RayHosts:
    """The cluster: h1 is the head; one CPU on each host, so that a run needs them all.

    Attributes:
        hosts: the hosts below it.
        shared: folder that all hosts see.
        environment: of every process of the cluster and of its clients.
    """

    def __init__(self, num_hosts: int) -> None:
        self.hosts = Hosts(num_hosts, seen=(REPOSITORY, Path(sys.prefix)))
        self.shared = self.hosts.shared
        self.token = self.shared / "auth_token"
        self.token.write_text(secrets.token_hex(32))
        head = self.hosts[0].address
        self.environment = {
            **os.environ,
            "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "RAY_API_SERVER_ADDRESS": f"http://{head}:{DASHBOARD_PORT}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            # A silent node is dead after 5 s to 20 s; by default it takes a minute.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "3000",
        }
        self._nodes: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for number in range(num_hosts):
                self.start_node(number)
        except BaseException:
            self.close()
            raise

    def start_node(self, number: int) -> None:
        """`ray start` on a host; returns when the node is alive for the head."""
        host = self.hosts[number]
        where = [f"--address={self.hosts[0].address}:{GCS_PORT}"]
        if number == 0:
            where = ["--head", f"--port={GCS_PORT}", f"--dashboard-port={DASHBOARD_PORT}"]
            where += ["--dashboard-host=0.0.0.0"]
        command = ["ray", "start", "--block", "--disable-usage-stats", *where]
        command += [f"--node-ip-address={host.address}", f"--metrics-export-port={METRICS_PORT}"]
        command += ["--num-cpus=1", "--object-store-memory=150000000"]
        log = self.shared / f"node_{host.name}.log"
        node = host.start(command, log, self.environment, REPOSITORY)
        self._nodes[number] = node
        wait_until(lambda: self._is_up(host, node, log), _START_S, log)

    def replace(self, number: int) -> None:
        """Put a new host with a new node in the place of one that was lost."""
        self._nodes.pop(number).kill()
        self.hosts.replace(number)
        self.start_node(number)

    def ask(self, url: str, *, token: bool, number: int = 0) -> tuple[int, str]:
        """Status (0 for no answer) and text of a URL, asked from a host."""
        command = [sys.executable, "-c", _STATUS, url, *([str(self.token)] if token else [])]
        done = self.hosts[number].run(command, self.environment, timeout=_ASK_S)
        assert done.returncode == 0, done.stderr
        status, _, text = done.stdout.partition("\n")
        return int(status), text

    def nodes(self) -> dict[str, str]:
        """State of every node that Ray remembers as last seen, by address."""
        url = f"{self.environment['RAY_API_SERVER_ADDRESS']}/api/v0/nodes"
        status, text = self.ask(url, token=True)
        if status != 200:
            return {}
        rows = json.loads(text)["data"]["result"]["result"]
        alive = {row["node_ip"] for row in rows if row["state"] == "ALIVE"}
        return {row["node_ip"]: "ALIVE" if row["node_ip"] in alive else "DEAD" for row in rows}

    def workers(self, number: int) -> set[str]:
        """Names of the actors of a run on a host, such as `Learner`."""
        titles = [_ACTOR.match(title) for title in self.hosts[number].titles()]
        return {title["name"] for title in titles if title}

    def close(self) -> None:
        """End all hosts, and with them Ray."""
        self.hosts.close()
        for node in self._nodes.values():
            node.wait(timeout=_ASK_S)

    def _is_up(self, host: Host, node: subprocess.Popen[bytes], log: Path) -> bool:
        assert node.poll() is None, log.read_text()[-4000:]
        return self.nodes().get(host.address) == "ALIVE"


class Job:
    """`launch/submit.sh` on the head, started at once."""

    def __init__(self, cluster: RayHosts, overrides: Sequence[str], output: Path) -> None:
        self.output = output
        self.log = output.with_name(f"{output.name}.log")
        command = ["launch/submit.sh", *overrides, f"output_dir={output}"]
        head = cluster.hosts[0]
        self._process = head.start(command, self.log, cluster.environment, REPOSITORY)

    @property
    def text(self) -> str:
        return self.log.read_text()

    def wait(self, timeout_s: float) -> int:
        """The exit status of `ray job submit`."""
        wait_until(lambda: self._process.poll() is not None, timeout_s, self.log)
        return self._process.wait()

    def wait_for_step(self, step: int, timeout_s: float) -> None:
        metrics = self.output / "metrics.jsonl"

        def is_done() -> bool:
            assert self._process.poll() is None, self.text[-6000:]
            return metrics.is_file() and len(metrics.read_text().splitlines()) >= step

        wait_until(is_done, timeout_s, self.log)

    def failure(self) -> str:
        """The message of the run, from `failed:` on."""
        found = re.search(r"^rlhf_ray: failed: .*", self.text, re.MULTILINE | re.DOTALL)
        assert found, self.text[-6000:]
        return found[0]


def wait_until(holds: Callable[[], bool], timeout_s: float, log: Path) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not after {timeout_s} s:\n{log.read_text()[-6000:]}"
        time.sleep(_POLL_S)
