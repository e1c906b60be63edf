"""A run that is larger than its cluster: an autoscaler adds the nodes, or the run says why not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_ray.testing.tiny import tiny_random
from tests.cluster.test_hosts import demo, metrics_of
from tests.e2e.ray_head import RayHead
from tests.e2e.run_command import REPOSITORY

pytestmark = [pytest.mark.cluster, pytest.mark.nightly, pytest.mark.timeout(900)]
WORKER = {"CPU": 1, "object_store_memory": 100_000_000}
_RUN_S = 400.0
# An idle node goes after 12 s; then its processes end.
_GONE_S = 120.0
_NODES = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(json.dumps([row["NodeID"][-5:] for row in ray.nodes() if row["Alive"]]))
"""


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    """One CPU, of which a run takes 1.5, and up to three nodes with one CPU each."""
    cluster = RayHead(num_cpus=1, worker_types={"small": WORKER}, max_workers=3)
    try:
        cluster.wait()
        yield cluster
    finally:
        left = cluster.end()
    assert left == [], "processes outlived the cluster"


def run(head: RayHead, folder: Path, *overrides: str) -> tuple[int, str]:
    """Status and output of the command on the cluster."""
    model = tiny_random(folder / "model")
    command = [sys.executable, "-m", "rlhf_ray.main", *demo(model, num_steps=2)]
    command += [f"output_dir={folder / 'run'}", *overrides]
    done = subprocess.run(
        command,
        env={**head.environment, "RAY_ADDRESS": head.address},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_RUN_S,
        check=False,
    )
    head.remember_processes()
    return done.returncode, done.stdout


def nodes(head: RayHead) -> list[str]:
    """The last digits of the names of all living nodes; the head is 00000."""
    done = subprocess.run(
        [sys.executable, "-c", _NODES, head.address],
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=_GONE_S,
        check=True,
    )
    return sorted(json.loads(done.stdout.splitlines()[-1]))


def test_nodes_join_for_the_run_and_leave_after_it(head, tmp_path):
    assert nodes(head) == ["00000"]
    status, text = run(head, tmp_path, "placement.wait_s=200")
    assert status == 0, text[-6000:]
    words = "waiting up to placement.wait_s=200 s for nodes to join: learner: 1 of 1 bundles"
    assert words in text
    assert [row["step"] for row in metrics_of(tmp_path / "run")] == [1, 2]
    deadline = time.monotonic() + _GONE_S
    while (found := nodes(head)) != ["00000"]:
        assert time.monotonic() < deadline, found


def test_a_plan_that_no_node_holds_ends_at_the_deadline(head, tmp_path):
    started = time.monotonic()
    status, text = run(head, tmp_path, "training.num_cpus=1.5", "placement.wait_s=15")
    assert status == 2, text[-6000:]
    words = " ".join(text.split())
    assert "too small after a wait of 1" in words
    assert "learner: 1 of 1 bundles with 0 GPUs and 1.5 CPUs fit on no node" in words
    assert "see in `ray status` that the autoscaler has a type of node for such a bundle" in words
    assert "Traceback" not in text
    assert 15 <= time.monotonic() - started < 120
    assert nodes(head) == ["00000"], "no node is started for a run that fits on none"
