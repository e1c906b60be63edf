"""Runs as Ray jobs: on a real cluster with token authentication, from a copy of the tree."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.ray_head import SCRIPTS, RayHead
from tests.e2e.run_command import REPOSITORY

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]
_JOB_TIMEOUT_S = 180.0
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
    head: RayHead, command: list[str], log: Path, until: Callable[[], bool]
) -> tuple[int, str]:
    """The exit status and the output of a command; calls `until` meanwhile until it holds."""
    held = False
    deadline = time.monotonic() + _JOB_TIMEOUT_S
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=head.environment, cwd=REPOSITORY
        )
    try:
        while process.poll() is None:
            assert time.monotonic() < deadline, log.read_text()[-6000:]
            head.remember_processes()
            held = held or until()
            time.sleep(0.3)
    finally:
        process.kill()
        process.wait(timeout=10)
    assert held, log.read_text()[-6000:]
    return process.returncode, log.read_text()


def demo(model: Path, output: Path, *, num_steps: int) -> list[str]:
    return [
        "recipe=demo",
        f"num_steps={num_steps}",
        f"model.path={model}",
        "data.max_prompt_tokens=48",
        "prompts_per_step=2",
        f"output_dir={output}",
    ]


def check_output(output: Path, num_steps: int) -> None:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, num_steps + 1))
    assert max(row["publish/probe_gap_max"] for row in rows) < 1e-3
    assert len(list((output / "rollouts").glob("step_*.jsonl"))) == num_steps
    assert (output / "model" / "model.safetensors").stat().st_size > 0
    assert (output / "model" / "tokenizer.json").is_file()
    assert (output / "config.yaml").is_file()


def test_submit_script(head, tiny_model, tmp_path):
    """And the gauges are at the node's Prometheus endpoint while the run goes on."""
    output = tmp_path / "run"
    command = ["launch/submit.sh", *demo(tiny_model, output, num_steps=12)]
    shown: list[float] = []

    def gauge_is_shown() -> bool:
        shown.extend(float(value) for value in _GAUGE.findall(head.metrics_text()))
        return bool(shown)

    status, text = submit(head, command, tmp_path / "log", gauge_is_shown)
    assert status == 0, text[-6000:]
    check_output(output, 12)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert shown[0] in [pytest.approx(row["reward/mean"]) for row in rows]


def test_ray_job_submit_by_hand(head, tiny_model, tmp_path):
    output = tmp_path / "run"
    command = [str(SCRIPTS / "ray"), "job", "submit", "--working-dir", ".", "--"]
    command += ["python", "-m", "rlhf_ray.main", *demo(tiny_model, output, num_steps=4)]
    status, text = submit(head, command, tmp_path / "log", lambda: True)
    assert status == 0, text[-6000:]
    check_output(output, 4)
    # The copy was run, not the tree: what a job writes beside the code is lost with it.
    assert "summary" in text or "reward/mean" in text


def test_a_wrong_configuration_is_refused_in_words(head, tmp_path):
    command = ["launch/submit.sh", "recipe=demo", "num_step=3", f"output_dir={tmp_path / 'run'}"]
    status, text = submit(head, command, tmp_path / "log", lambda: True)
    assert status == 1, "the status of `ray job submit` for a failed job"
    assert "num_step: unknown key" in text
    assert "did you mean num_steps" in text
    assert "exit code 2" in text
    assert not (tmp_path / "run").exists()


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
