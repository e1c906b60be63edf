"""launch/slurm.sbatch in a real Slurm: two nodes, a run over both, its status, its end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_ray.testing.tiny import tiny_random
from tests.cluster.hosts import Hosts
from tests.cluster.ray_hosts import REPOSITORY, wait_until
from tests.cluster.slurm import Slurm, why_no_slurm
from tests.cluster.test_hosts import demo

pytestmark = [pytest.mark.cluster, pytest.mark.nightly, pytest.mark.timeout(900)]
_JOB_S = 500.0
_END_S = 60.0


@pytest.fixture(scope="module")
def slurm(can_have_hosts) -> Iterator[Slurm]:
    if reason := why_no_slurm():
        pytest.skip(reason)
    hosts = Hosts(2, seen=(REPOSITORY, Path(sys.prefix)))
    try:
        yield Slurm(hosts, 2)
    finally:
        hosts.close()


def submit(slurm: Slurm, name: str, *overrides: str) -> tuple[int, str]:
    """Status and output of a job as docs/launch.md starts it, with one CPU for 64 a node."""
    log = slurm.hosts.shared / f"{name}.log"
    options = ["--nodes=2", "--cpus-per-task=1", f"--output={log}"]
    output = f"output_dir={slurm.hosts.shared / name}"
    job = slurm.sbatch([*options, "launch/slurm.sbatch", *overrides, output], REPOSITORY)
    wait_until(lambda: job.poll() is not None, _JOB_S, log)
    return job.wait(), log.read_text()


def leftovers(slurm: Slurm) -> list[str]:
    """Processes of Ray and of runs on both hosts."""
    titles = [title for number in (0, 1) for title in slurm.hosts[number].titles()]
    return [t for t in titles if "ray" in t.split(" ")[0].lower() or "rlhf_ray.main" in t]


def test_a_run_on_two_nodes(slurm):
    model = tiny_random(slurm.hosts.shared / "model")
    status, text = submit(slurm, "run", *demo(model, num_steps=3))
    assert status == 0, text[-6000:] + slurm.logs()
    assert "wait_for_nodes: 2 of 2 nodes at 10.77.0.1:6379" in text
    output = slurm.hosts.shared / "run"
    assert len((output / "metrics.jsonl").read_text().splitlines()) == 3
    assert f"Result: {output / 'model'}" in text
    wait_until(lambda: not leftovers(slurm), _END_S, slurm.hosts.shared / "run.log")
    assert list((REPOSITORY / ".slurm").glob("token-*")) == [], "the token of the job is left"


def test_a_wrong_request_has_its_status(slurm):
    status, text = submit(slurm, "wrong", "recipe=demo", "num_step=3")
    assert status == 2, text[-6000:] + slurm.logs()
    assert "rlhf_ray: the configuration is wrong: num_step: unknown key" in text
    wait_until(lambda: not leftovers(slurm), _END_S, slurm.hosts.shared / "wrong.log")
