"""Runs as Ray jobs: on a real cluster with token authentication, from a copy of the tree."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.ray_head import SCRIPTS, RayHead
from tests.e2e.run_command import REPOSITORY

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]
# A minute on a quiet machine: mostly the imports of all workers on two cores.
_JOB_TIMEOUT_S = 300.0
_GAUGE = re.compile(r'^ray_rlhf_ray_reward_mean\{.*run="demo".*\} ([0-9.e+-]+)$', re.MULTILINE)


@pytest.fixture(scope="module")
def head():
    cluster = RayHead()
    try:
        cluster.wait()
        yield cluster
    finally:
        left = cluster.end()
    assert left == [], "processes outlived the cluster"


def submit(
    head: RayHead, command: list[str], log: Path, look: Callable[[], None]
) -> tuple[int, str]:
    """The exit status and the output of a command; calls `look` now and then meanwhile."""
    deadline = time.monotonic() + _JOB_TIMEOUT_S
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=head.environment, cwd=REPOSITORY
        )
    try:
        while process.poll() is None:
            assert time.monotonic() < deadline, log.read_text()[-6000:]
            head.remember_processes()
            look()
            time.sleep(0.3)
    finally:
        process.kill()
        process.wait(timeout=10)
    return process.returncode, log.read_text()


def by_hand(*overrides: str) -> list[str]:
    """As documentation has it, with the environment's own `ray`."""
    ray = [str(SCRIPTS / "ray"), "job", "submit", "--working-dir", ".", "--"]
    return [*ray, "python", "-m", "rlhf_ray.main", *overrides]


def demo(model: Path, output: Path, *, num_steps: int) -> list[str]:
    """The demo on an untrained model, without the reference: one process less to start."""
    return [
        "recipe=demo",
        f"num_steps={num_steps}",
        f"model.path={model}",
        "data.max_prompt_tokens=48",
        "prompts_per_step=2",
        "algorithm.kl_coefficient=0",
        # Something that differs from sample to sample, also in answers without any sense.
        "reward.functions=[{path: length, arguments: {target: 6}}]",
        f"output_dir={output}",
    ]


def read_metrics(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def check_output(output: Path, num_steps: int) -> None:
    rows = read_metrics(output)
    assert [row["step"] for row in rows] == list(range(1, num_steps + 1))
    assert max(row["publish/probe_gap_max"] for row in rows) < 1e-3
    assert len(list((output / "rollouts").glob("step_*.jsonl"))) == num_steps
    assert (output / "model" / "model.safetensors").stat().st_size > 0
    assert (output / "model" / "tokenizer.json").is_file()
    assert (output / "config.yaml").is_file()


def nothing() -> None:
    """No need to look at anything meanwhile."""


@pytest.mark.slow
def test_a_run_and_its_gauges(head, tiny_model, tmp_path):
    """`ray job submit` by hand; meanwhile the gauges are at the node's Prometheus endpoint."""
    output = tmp_path / "run"
    shown: list[float] = []

    def look() -> None:
        shown.extend(float(value) for value in _GAUGE.findall(head.metrics_text()))

    command = by_hand(*demo(tiny_model, output, num_steps=12))
    status, text = submit(head, command, tmp_path / "log", look)
    assert status == 0, text[-6000:]
    check_output(output, 12)
    assert f"Result: {output / 'model'}" in text
    assert shown, "the gauge was never there"
    means = [row["reward/mean"] for row in read_metrics(output)]
    assert len(set(means)) > 1
    assert [value for value in shown if value not in [pytest.approx(mean) for mean in means]] == []


@pytest.mark.slow
def test_a_run_by_the_script(head, tiny_model, tmp_path):
    output = tmp_path / "run"
    command = ["launch/submit.sh", *demo(tiny_model, output, num_steps=4)]
    status, text = submit(head, command, tmp_path / "log", nothing)
    assert status == 0, text[-6000:]
    check_output(output, 4)


@pytest.mark.slow
def test_a_stopped_job_leaves_no_worker_behind(head, tiny_model, tmp_path):
    output = tmp_path / "run"
    options = ["--no-wait", "--submission-id", "to_be_stopped", "--"]
    command = ["launch/submit.sh", *options, *demo(tiny_model, output, num_steps=100_000)]
    status, text = submit(head, command, tmp_path / "log", nothing)
    assert status == 0, text[-6000:]
    metrics = output / "metrics.jsonl"
    wait_until(lambda: metrics.is_file() and len(read_metrics(output)) >= 2, _JOB_TIMEOUT_S)
    assert workers_of(head)

    stop = [str(SCRIPTS / "ray"), "job", "stop", "to_be_stopped"]
    status, text = submit(head, stop, tmp_path / "stop_log", nothing)
    assert status == 0, text
    wait_until(lambda: not workers_of(head), 60)


def workers_of(head: RayHead) -> list[str]:
    titles = ("ray::Generator", "ray::Learner", "ray::Reward", "VLLM::", "-m rlhf_ray.")
    return [line for line in head.command_lines() if any(title in line for title in titles)]


def wait_until(holds: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not after {timeout_s} s"
        time.sleep(0.3)


def test_a_wrong_configuration_is_not_submitted(head, tmp_path):
    command = ["launch/submit.sh", "recipe=demo", "num_step=3", f"output_dir={tmp_path / 'run'}"]
    status, text = submit(head, command, tmp_path / "log", nothing)
    assert status == 2
    assert "rlhf_ray: the configuration is wrong: num_step: unknown key" in text
    assert "nothing was submitted" in text
    assert "Traceback" not in text


def test_a_job_with_a_wrong_request_is_refused_in_words(head, tmp_path):
    """What only the job can see: the files."""
    command = ["launch/submit.sh", "recipe=demo", f"data.path={tmp_path}/none.jsonl"]
    command.append(f"output_dir={tmp_path / 'run'}")
    status, text = submit(head, command, tmp_path / "log", nothing)
    assert status == 1, "the status of `ray job submit` for a failed job"
    assert "none.jsonl': no such file" in text
    assert "exit code 2" in text
    assert "Traceback" not in text
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_cluster_that_is_too_small_is_refused_in_words(head, tiny_model, tmp_path):
    command = ["launch/submit.sh", *demo(tiny_model, tmp_path / "run", num_steps=4)]
    status, text = submit(head, [*command, "training.num_cpus=3"], tmp_path / "log", nothing)
    assert status == 1
    assert "the Ray cluster is too small: learner: 1 of 1 bundles" in text
    assert "exit code 2" in text


def test_a_wrong_token_is_refused(head, tmp_path):
    token = tmp_path / "token"
    token.write_text("0" * 64)
    done = subprocess.run(
        ["launch/submit.sh", "recipe=demo"],
        env={**head.environment, "RAY_AUTH_TOKEN_PATH": str(token)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "token" in (done.stdout + done.stderr).lower()


def test_nodes_are_waited_for(head):
    """launch/wait_for_nodes.py, as slurm.sbatch calls it."""
    command = [sys.executable, "launch/wait_for_nodes.py", "--address", head.address]
    done = subprocess.run(
        [*command, "--nodes", "1", "--timeout-s", "60"],
        env=head.environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"1 of 1 nodes at {head.address}" in done.stdout
