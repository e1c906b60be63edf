"""The documented reward for programs that a model wrote."""

from __future__ import annotations

import dataclasses
import re
import shutil
import time
from pathlib import Path

import pytest

from tests.unit.rewards.functions.test_sandbox import needs_bwrap

pytestmark = pytest.mark.unit_slow

PAGE = Path(__file__).parents[4] / "docs/rewards.md"


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit (util-linux) is missing")
@pytest.mark.parametrize("sandbox", ["none", pytest.param("bwrap", marks=needs_bwrap)])
def test_programs_of_a_model_are_scored(make_worker, make_group, tmp_path, sandbox: str) -> None:
    (code,) = re.findall(r"```python\n(import re\n.*?\n)```\n\nRun it with", PAGE.read_text(), re.S)
    file = tmp_path / "program.py"
    file.write_text(code)
    programs = {
        "a, b = map(int, input().split())\nprint(a * b)": 1.0,
        "print(41)": 0.0,
        "import os; os._exit(0)": 0.0,
        "while True: pass": 0.0,
        "x = bytearray(3 << 30)\nprint(42)": 0.0,
        "while True: print('x' * 10_000)": 0.0,
        "print(42); raise SystemExit(1)": 0.0,
        "import subprocess\nsubprocess.Popen(['sleep', '299'])\nprint(42)": 1.0,
    }
    fence = "`" * 3
    group = make_group(*(f"So:\n{fence}python\n{text}\n{fence}" for text in programs), "no code")
    prompt = dataclasses.replace(group.prompt, columns={"input": "6 7"}, answer="42")
    entry = {"path": f"{file}:passes", "arguments": {"limit_s": 2.0}}
    worker = make_worker(entry, sandbox=sandbox, timeout_s=60.0, max_file_gib=0.02)
    started = time.monotonic()
    scored, summary = worker.score(dataclasses.replace(group, prompt=prompt))
    assert time.monotonic() - started < 60
    assert summary.failures == ()
    assert scored.rewards.tolist() == [*programs.values(), 0.0]
    assert worker._process.num_ended_processes >= 1
