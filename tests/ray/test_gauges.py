"""Gauges at the metrics endpoint of a real Ray."""

from __future__ import annotations

import time
import urllib.request

import ray

from rlhf_ray.observe.metrics import GaugeWriter

DEADLINE_S = 60.0
EXPECTED = {
    "ray_rlhf_ray_reward_mean{": "0.75",
    "ray_rlhf_ray_reward_my_part{": "1.0",
    "ray_rlhf_ray_reward_my_part_{": "2.0",
    "ray_rlhf_ray_step{": "3.0",
}


def lines_at(url: str) -> list[str]:
    """The lines of the endpoint now; none while it does not answer."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.read().decode().splitlines()
    except OSError:
        return []


def is_shown(lines: list[str], name: str, value: str) -> bool:
    return any(
        line.startswith(name) and 'run="demo"' in line and line.endswith(" " + value)
        for line in lines
    )


def test_metrics_appear_at_the_prometheus_endpoint() -> None:
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    writer = GaugeWriter("demo")
    missing, deadline = list(EXPECTED), time.monotonic() + DEADLINE_S
    while missing and time.monotonic() < deadline:
        writer.write(3, {"reward/mean": 0.75, "reward/my-part": 1.0, "reward/my.part": 2.0})
        lines = lines_at(url)
        missing = [name for name, value in EXPECTED.items() if not is_shown(lines, name, value)]
        time.sleep(0.2)
    writer.close()
    assert missing == []
