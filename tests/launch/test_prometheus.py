"""A real Prometheus with the scrape configuration evaluates every query of the dashboard."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.launch.test_monitoring import FOLDER, GAUGES, QUERIES

PROMETHEUS = shutil.which("prometheus")
pytestmark = [
    *(pytest.mark.slow, pytest.mark.nightly),
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed"),
]
_DISCOVERY = "/tmp/ray/prom_metrics_service_discovery.json"
_ANSWER_S = 60.0


class Endpoint(BaseHTTPRequestHandler):
    """Shows every gauge of the package, in the form of Ray's endpoint; the values count up."""

    def do_GET(self) -> None:
        lines = [
            f'# TYPE {gauge} gauge\n{gauge}{{WorkerId="w",run="demo"}} {number}.5\n'
            for number, gauge in enumerate(sorted(GAUGES), start=1)
        ]
        body = "".join(lines).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing on the screen of the tests."""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A Prometheus that scrapes the endpoint, found as it finds the nodes of a cluster."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    nodes = tmp_path / "nodes.json"
    target = f"127.0.0.1:{server.server_port}"
    nodes.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": [target]}]))
    text = (FOLDER / "prometheus.yaml").read_text()
    assert _DISCOVERY in text
    config = tmp_path / "prometheus.yaml"
    # Every second instead of every ten.
    config.write_text(text.replace(_DISCOVERY, str(nodes)).replace("10s", "1s"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [str(PROMETHEUS), f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'db'}"]
    with (tmp_path / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)
        server.shutdown()


def ask(address: str, query: str) -> list[Any]:
    """The result of a query; empty while Prometheus does not answer yet.

    Raises:
        HTTPError: the query is wrong.
    """
    url = f"{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError:
        raise
    except OSError:
        return []
    assert found["status"] == "success", found
    return found["data"]["result"]


def test_every_query_has_a_result(address):
    asked = {query.replace("$run", "demo") for query in QUERIES}
    deadline = time.monotonic() + _ANSWER_S
    while (missing := {q for q in asked if not ask(address, q)}) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert missing == set()
    assert not ask(address, QUERIES[0].replace("$run", "other"))
    values = {name: float(number) + 0.5 for number, name in enumerate(sorted(GAUGES), start=1)}
    [speed] = ask(
        address, next(q for q in QUERIES if "tokens_generated" in q).replace("$run", "demo")
    )
    expected = values["ray_rlhf_ray_tokens_generated"] / values["ray_rlhf_ray_time_step_s"]
    assert float(speed["value"][1]) == pytest.approx(expected)
