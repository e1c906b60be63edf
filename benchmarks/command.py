"""Runs of this project's command, and the records that they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Records:
    """Records of a finished run.

    Attributes:
        steps: the metrics of every step.
        startup: the content of `startup.json`; empty for stages that learn from examples.
        total_s: from the command to its end.
    """

    steps: list[dict[str, Any]]
    startup: dict[str, Any]
    total_s: float


def run(command: Sequence[str]) -> Records:
    """Run the command with these overrides.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        started = time.monotonic()
        # The run ends by itself: its own deadlines bound every wait.
        subprocess.run(
            [
                *(sys.executable, "-m", "rlhf_ray.main", *command),
                *(f"output_dir={output}", "observe.progress=off"),
            ],
            check=True,
            # Ray gives workers a niceness of 15: other processes on the machine would come before
            # them, but not before the parts that they are compared with.
            env={**os.environ, "RAY_worker_niceness": "0"},
        )
        startup = output / "startup.json"
        lines = (output / "metrics.jsonl").read_text().splitlines()
        return Records(
            steps=[json.loads(line) for line in lines],
            startup=json.loads(startup.read_text()) if startup.is_file() else {},
            total_s=time.monotonic() - started,
        )
