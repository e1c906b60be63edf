"""A real Prometheus with the scrape configuration, next to a run on a real cluster."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.ray_head import RayHead
from tests.e2e.run_command import REPOSITORY

PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
pytestmark = [
    *(pytest.mark.stack, pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(900)),
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed"),
]
FOLDER = REPOSITORY / "launch" / "monitoring"
_DISCOVERY = "/tmp/ray/prom_metrics_service_discovery.json"
_RUN_S = 600.0
# Of a run without a critic, whose answers are greedy in an evaluation.
_NOT_MEASURED = ("value_grad_norm", "evaluation_sampled_reward_mean")
_SETTINGS = (
    *("recipe=demo", "num_steps=6", "recovery.max_restarts=1", "checkpoint.every_steps=1"),
    *("evaluation.every=1", "prompts_per_step=4", "samples_per_prompt=4"),
)


@pytest.fixture
def head():
    cluster = RayHead()
    try:
        cluster.wait()
        yield cluster
    finally:
        cluster.end()


@pytest.fixture
def prometheus(head, tmp_path):
    """The address of a Prometheus with the configuration of this project."""
    text = (FOLDER / "prometheus.yaml").read_text()
    assert _DISCOVERY in text
    # Every second instead of every ten: a test's run is short.
    text = text.replace(_DISCOVERY, f"{head.folder}/{Path(_DISCOVERY).name}")
    config = tmp_path / "prometheus.yaml"
    config.write_text(text.replace("10s", "1s").replace("30s", "1s"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with (tmp_path / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                *(str(PROMETHEUS), f"--config.file={config}"),
                *(
                    f"--storage.tsdb.path={tmp_path / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def ask(address: str, query: str) -> list[Any]:
    """The result of a query; empty while Prometheus does not answer yet.

    Raises:
        HTTPError: the query is wrong.
    """
    url = f"{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)
    except ConnectionError:
        return []
    except urllib.error.URLError as error:
        if isinstance(error, urllib.error.HTTPError):
            raise
        return []
    assert found["status"] == "success", found
    return found["data"]["result"]


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_the_configuration_is_right():
    subprocess.run([str(PROMTOOL), "check", "config", FOLDER / "prometheus.yaml"], check=True)


def test_every_query_of_the_dashboard_has_a_result(head, prometheus, tmp_path):
    dashboard = json.loads((FOLDER / "grafana_dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {query.replace("$run", "demo") for query in queries}
    held_out = tmp_path / "held_out.jsonl"
    rows = [{"prompt": f"What is {i}+1?", "answer": str(i + 1)} for i in range(4)]
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [*_SETTINGS, f"evaluation.path={held_out}", f"output_dir={tmp_path / 'run'}"]
    log = tmp_path / "run.log"
    with log.open("w") as file:
        run = subprocess.Popen(
            [sys.executable, "-m", "rlhf_ray.main", *settings],
            env={**head.environment, "RAY_ADDRESS": head.address},
            cwd=REPOSITORY,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    missing, deadline = set(asked), time.monotonic() + _RUN_S
    try:
        while run.poll() is None:
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            missing = {query for query in missing if not ask(prometheus, query)}
            head.remember_processes()
            time.sleep(0.5)
    finally:
        run.kill()
        run.wait()
    assert run.returncode == 0, log.read_text()[-4000:]
    # The last values stay for five minutes after the driver has left.
    missing = {query for query in missing if not ask(prometheus, query)}
    unexpected = {query for query in missing if not any(name in query for name in _NOT_MEASURED)}
    assert unexpected == set()
    [step] = ask(prometheus, 'max_over_time(ray_rlhf_ray_step{run="demo"}[10m])')
    assert float(step["value"][1]) >= 1
    names = ask(prometheus, 'count by (__name__) ({__name__=~"ray_rlhf_ray_.+"})')
    assert all(re.fullmatch(r"ray_rlhf_ray_\w+", found["metric"]["__name__"]) for found in names)
