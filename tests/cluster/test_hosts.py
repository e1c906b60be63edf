"""Runs as jobs on two hosts: the same numbers as on one, and a host that is lost is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_ray.models.tiny.llama import TinySizes
from rlhf_ray.publish.transports import IPC, TRANSPORTS
from rlhf_ray.testing.tiny import tiny_random
from tests.cluster.ray_hosts import DASHBOARD_PORT, METRICS_PORT, REPOSITORY, Job, RayHosts

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
# A job takes a minute on a quiet machine: mostly the imports of all workers on two cores.
_JOB_S = 400.0
# Ray declares the host dead within 20 s; then the report, and the end of the workers.
_LOSS_S = 120.0


def demo(model: Path, *, num_steps: int) -> list[str]:
    """The demo on an untrained model; engine and learner do not fit into one host."""
    return [
        *("recipe=demo", f"num_steps={num_steps}", f"model.path={model}"),
        *("generation.num_cpus=0.7", "training.num_cpus=0.6", "generation.kv_cache_gib=0.1"),
        *("data.max_prompt_tokens=48", "prompts_per_step=2", "algorithm.kl_coefficient=0"),
        # It differs from sample to sample, also in answers without any sense.
        "reward.functions=[{path: length, arguments: {target: 6}}]",
    ]


def metrics_of(output: Path) -> list[dict[str, float]]:
    """All metrics but times, and the statistics of the engine, which depend on them."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "engine/"))} for row in rows
    ]


def start(cluster: RayHosts, name: str, *overrides: str) -> Job:
    return Job(cluster, overrides, cluster.shared / name)


def check_parted(cluster: RayHosts) -> None:
    """See that engine and learner are on different hosts."""
    first, second = cluster.workers(0), cluster.workers(1)
    assert ("Generator" in first) != ("Learner" in first), (first, second)
    assert ("Generator" in second) != ("Learner" in second), (first, second)


def run_on_one_host(output: Path, *overrides: str) -> list[dict[str, float]]:
    """Metrics of a run without a cluster, in a local Ray of this machine."""
    outside = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_ray.main", *overrides, f"output_dir={output}"],
        env=outside,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=_JOB_S,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return metrics_of(output)


@pytest.fixture(scope="module")
def on_one_host(cluster, model) -> list[dict[str, float]]:
    return run_on_one_host(cluster.shared / "one_host", *demo(model, num_steps=4))


@pytest.mark.parametrize("token", [True, False])
@pytest.mark.parametrize("number", [0, 1])
def test_the_dashboard_asks_for_the_token(cluster, number, token):
    """From the head itself and from another host."""
    for path in ("nodes?view=summary", "api/jobs/", "api/v0/actors"):
        url = f"http://{cluster.hosts[0].address}:{DASHBOARD_PORT}/{path}"
        status, text = cluster.ask(url, token=token, number=number)
        assert status == (200 if token else 401), text
    # Prometheus reads metrics without a token: docs/launch.md says so.
    url = f"http://{cluster.hosts[1].address}:{METRICS_PORT}/metrics"
    status, text = cluster.ask(url, token=token, number=number)
    assert status == 200
    assert "ray_node_cpu_count{" in text


# Shared memory is that of one host.
@pytest.mark.parametrize("transport", [name for name in TRANSPORTS if name != IPC])
def test_two_hosts_compute_what_one_computes(cluster, model, on_one_host, transport):
    job = start(cluster, transport, *demo(model, num_steps=4), f"publish.transport={transport}")
    job.wait_for_step(1, _JOB_S)
    check_parted(cluster)
    assert job.wait(_JOB_S) == 0, job.text[-6000:]
    rows = metrics_of(job.output)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows == on_one_host
    assert (job.output / "model" / "model.safetensors").stat().st_size > 0


@pytest.mark.nightly
def test_ranks_of_a_learner_on_two_hosts(cluster, model):
    """They meet over the network, and learn what two ranks on one host learn."""
    settings = [*demo(model, num_steps=3), "generation.num_cpus=0.2", "training.num_ranks=2"]
    job = start(cluster, "ranks", *settings)
    job.wait_for_step(1, _JOB_S)
    assert "Learner" in cluster.workers(0) & cluster.workers(1)
    assert job.wait(_JOB_S) == 0, job.text[-6000:]
    assert metrics_of(job.output) == run_on_one_host(cluster.shared / "one_host_ranks", *settings)


@pytest.mark.nightly
@pytest.mark.parametrize("event", ["cut", "power_off"])
def test_a_lost_host_is_named_and_another_goes_on(cluster, model, event):
    settings = [*demo(model, num_steps=40), "checkpoint.every_steps=1"]
    job = start(cluster, event, *settings)
    job.wait_for_step(2, _JOB_S)
    check_parted(cluster)
    lost = cluster.hosts[1]
    workers = {f"{name.lower()}_0" for name in cluster.workers(1)}
    if event == "cut":
        cluster.hosts.cut(1)
    else:
        lost.power_off()
    try:
        assert job.wait(_LOSS_S) == 1, "the status of `ray job submit` for a failed job"
    finally:
        cluster.replace(1)
    message = job.failure()
    headline = message.splitlines()[0]
    assert f"failed: node {lost.address} ({lost.name}) was lost (phase " in headline
    assert f"{lost.address} ({lost.name}) ran {', '.join(sorted(workers))} (" in headline
    assert "resume=auto goes on from the last checkpoint" in headline
    assert "--- seen as: " in message
    assert f"on the lost node {lost.address}" in message
    assert cluster.workers(0) == set(), "workers outlived the run"

    job = start(cluster, event, *settings, "resume=auto")
    assert job.wait(_JOB_S) == 0, job.text[-6000:]
    assert [row["step"] for row in metrics_of(job.output)] == list(range(1, 41))


def wait_for_publish(cluster: RayHosts, job: Job, *, num_bytes: int) -> None:
    """Return within a publish, when it has moved some bytes between the hosts without a pause."""
    deadline = time.monotonic() + _JOB_S
    before, burst = cluster.hosts.bytes_moved(1), 0
    while burst < num_bytes:
        assert time.monotonic() < deadline, job.text[-6000:]
        time.sleep(0.2)
        moved = cluster.hosts.bytes_moved(1)
        # Prompts, answers and Ray's own words are some kilobytes.
        burst = burst + moved - before if moved - before > 100_000 else 0
        before = moved


@pytest.mark.nightly
@pytest.mark.parametrize("transport", [name for name in TRANSPORTS if name != IPC])
def test_a_link_that_is_cut_within_a_publish_is_named(cluster, transport):
    # 50 MB in float32, in 50 buckets: 5 s over a cable of 80 megabits.
    sizes = TinySizes(hidden=512, intermediate=1536, num_layers=4, num_heads=8)
    wide = tiny_random(cluster.shared / f"wide_{transport}", sizes=sizes)
    settings = [*demo(wide, num_steps=40), f"publish.transport={transport}"]
    settings += ["publish.bucket_bytes=1048576", "deadlines.publish_s=90"]
    job = start(cluster, f"within_{transport}", *settings)
    job.wait_for_step(1, _JOB_S)
    check_parted(cluster)
    lost = cluster.hosts[1]
    # Whichever host receives: both directions go through this cable, and one through the limit.
    for number in (0, 1):
        cluster.hosts.slow_down(number, megabits=80)
    wait_for_publish(cluster, job, num_bytes=10_000_000)
    cluster.hosts.cut(1)
    started = time.monotonic()
    try:
        assert job.wait(_LOSS_S) == 1
    finally:
        ended_s = time.monotonic() - started
        cluster.hosts.full_speed(0)
        cluster.replace(1)
    headline = job.failure().splitlines()[0]
    print(f"{transport}: ended {ended_s:.0f} s after the cut\n{headline}")
    assert f"failed: node {lost.address} ({lost.name}) was lost (phase publish, step" in headline
    assert cluster.workers(0) == set(), "workers outlived the run"
