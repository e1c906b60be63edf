"""Gauges at the metrics endpoint of a real Ray."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import time, urllib.request
import ray
from rlhf_ray.observe.metrics import GaugeWriter

ray.init(num_cpus=1, include_dashboard=False, logging_level="error", log_to_driver=False)
node = ray.nodes()[0]
url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
writer = GaugeWriter("demo")
expected = {
    'ray_rlhf_ray_reward_mean{': '0.75',
    'ray_rlhf_ray_reward_my_part{': '1.0',
    'ray_rlhf_ray_reward_my_part_{': '2.0',
    'ray_rlhf_ray_step{': '3.0',
}
missing, deadline = expected, time.monotonic() + 60
while missing and time.monotonic() < deadline:
    writer.write(3, {"reward/mean": 0.75, "reward/my-part": 1.0, "reward/my.part": 2.0})
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            lines = response.read().decode().splitlines()
    except OSError:
        lines = []
    missing = [
        name for name, value in expected.items()
        if not any(
            line.startswith(name) and 'run="demo"' in line and line.endswith(" " + value)
            for line in lines
        )
    ]
    time.sleep(0.5)
writer.close()
ray.shutdown()
print("missing:", missing)
"""


def test_metrics_appear_at_the_prometheus_endpoint() -> None:
    result = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        timeout=150,
        env={**os.environ, "RAY_metrics_report_interval_ms": "500"},
    )
    assert result.stdout.strip().endswith("missing: []"), result.stdout + result.stderr
