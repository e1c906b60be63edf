"""placement.wait_s waits for the nodes that Ray's autoscaler starts on its request."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_ray.testing.tiny import tiny_random
from tests.cluster.hosts import Host, Hosts
from tests.cluster.ray_hosts import GCS_PORT, REPOSITORY, SCRIPTS, wait_until
from tests.cluster.test_hosts import demo

pytestmark = [pytest.mark.cluster, pytest.mark.nightly, pytest.mark.timeout(900)]
_START_S = 120.0
_RUN_S = 400.0
# Ray's own cluster for tests: its nodes are raylets on this host, the autoscaler is the real one.
# It calls `ray stop`, which ends the Ray of the host alone.
_START = """
from ray.cluster_utils import AutoscalingCluster
node = {"resources": {"CPU": 1, "object_store_memory": 150_000_000}, "node_config": {}}
types = {"small": {**node, "min_workers": 0, "max_workers": 2}}
head = {"CPU": 1, "object_store_memory": 150_000_000}
AutoscalingCluster(head_resources=head, worker_node_types=types).start()
"""


@pytest.fixture(scope="module")
def hosts(can_have_hosts) -> Iterator[Hosts]:
    hosts = Hosts(1, seen=(REPOSITORY, Path(sys.prefix)))
    try:
        environment = environment_of(hosts[0])
        done = hosts[0].run([sys.executable, "-c", _START], environment, timeout=_START_S)
        assert done.returncode == 0, done.stdout + done.stderr
        yield hosts
    finally:
        hosts.close()


def environment_of(host: Host) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "RAY_AUTH_MODE": "disabled",
    }


def run(hosts: Hosts, name: str, *overrides: str) -> tuple[int, str]:
    """Status and output of the demo, on the head; it needs two CPUs."""
    model = hosts.shared / "model"
    if not model.exists():
        tiny_random(model)
    command = [sys.executable, "-m", "rlhf_ray.main", *demo(model, num_steps=3), *overrides]
    command.append(f"output_dir={hosts.shared / name}")
    environment = environment_of(hosts[0])
    environment["RAY_ADDRESS"] = f"{hosts[0].address}:{GCS_PORT}"
    log = hosts.shared / f"{name}.log"
    process = hosts[0].start(command, log, environment, REPOSITORY)
    wait_until(lambda: process.poll() is not None, _RUN_S, log)
    return process.wait(), log.read_text()


def num_raylets(hosts: Hosts) -> int:
    return sum("/raylet/raylet " in title for title in hosts[0].titles())


def test_nodes_come_for_a_run_that_waits_and_only_for_it(hosts):
    status, text = run(hosts, "refused")
    assert status == 2, text
    found = re.search(r"the Ray cluster is too small: .*", text)
    assert found, text
    assert "It has 0 GPUs and 1 CPUs on 1 node" in found[0]
    assert num_raylets(hosts) == 1

    status, text = run(hosts, "waits", "placement.wait_s=240")
    assert status == 0, text[-6000:]
    assert num_raylets(hosts) == 2
    assert len((hosts.shared / "waits" / "metrics.jsonl").read_text().splitlines()) == 3
