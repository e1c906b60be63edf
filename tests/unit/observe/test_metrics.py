"""Metrics on disk over kills and resumes, and in TensorBoard."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.runtime import ObserveConfig
from rlhf_ray.observe.metrics import (
    CombinedWriter,
    JsonlWriter,
    TensorBoardWriter,
    check_metrics,
    gauge_name,
    make_writer,
    read_metrics,
)


def write_steps(path: Path, steps: range, *, last_step: int | None, value: float = 0.0) -> None:
    writer = JsonlWriter(path, last_step=last_step)
    for step in steps:
        writer.write(step, {"reward/mean": step + value})
    writer.close()


def steps_in(path: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["reward/mean"]) for row in map(json.loads, path.open())]


def test_one_flat_object_per_line(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    writer = JsonlWriter(path, last_step=0)
    writer.write(1, {"reward/mean": 0.1, "kl/reference": math.nan, "policy/loss": math.inf})
    # Complete on disk before the next step and without close.
    line = path.read_text()
    writer.close()
    writer.close()
    assert line == '{"step": 1, "reward/mean": 0.1, "kl/reference": null, "policy/loss": null}\n'
    (row,) = read_metrics(path)
    assert math.isnan(row["kl/reference"])
    assert row["reward/mean"] == 0.1


def test_a_resumed_run_replaces_later_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 6), last_step=0)
    write_steps(path, range(4, 7), last_step=3, value=0.5)
    assert steps_in(path) == [(1, 1), (2, 2), (3, 3), (4, 4.5), (5, 5.5), (6, 6.5)]


def test_a_new_run_starts_an_empty_file_and_none_appends(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 3), last_step=0)
    write_steps(path, range(3, 4), last_step=None)
    assert [step for step, _ in steps_in(path)] == [1, 2, 3]
    write_steps(path, range(1, 2), last_step=0, value=0.5)
    assert steps_in(path) == [(1, 1.5)]


@pytest.mark.parametrize("cut", [1, 5, 25])
def test_a_half_written_last_line_is_repaired(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 4), last_step=0)
    path.write_text(path.read_text()[:-cut])
    expected = [1, 2, 3] if cut == 1 else [1, 2]
    assert [row["step"] for row in read_metrics(path)] == expected
    write_steps(path, range(9, 10), last_step=None)
    assert [step for step, _ in steps_in(path)] == [*expected, 9]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2, holds no metrics of a step"):
        JsonlWriter(path, last_step=3)


@pytest.mark.parametrize(
    "line",
    [b'{"st', b"\xff\xfe", b"[1]", b'{"step": "1"}', b'{"step": null}', b'{"step": 2, "a": "x"}'],
)
def test_a_damaged_file_is_refused_before_the_run_goes_on(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    check_metrics(path)  # There is none yet.
    path.write_bytes(b'{"step": 1, "a": null}\n' + line + b'\n{"step": 3}\n{"st')
    with pytest.raises(RequestError, match=r"metrics.jsonl, line 2, holds no metrics of a step"):
        check_metrics(path)
    path.write_bytes(b'{"step": 1, "a": null}\n{"step": 3}\n' + line)
    check_metrics(path)


def test_lines_survive_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, pathlib\n"
        "from rlhf_ray.observe.metrics import JsonlWriter\n"
        "writer = JsonlWriter(pathlib.Path(sys.argv[1]), last_step=0)\n"
        "writer.write(1, {'reward/mean': 1.0})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "metrics.jsonl"
    process = subprocess.run([sys.executable, "-c", code, str(path)], timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert steps_in(path) == [(1, 1.0)]


def test_tensorboard_shows_the_steps_of_the_resumed_run(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorBoardWriter(tmp_path, last_step=0)
    for step in range(1, 5):
        first.write(step, {"reward/mean": float(step)})
    first.close()
    second = TensorBoardWriter(tmp_path, last_step=2)
    second.write(3, {"reward/mean": 30.0})
    second.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    values = [(event.step, event.value) for event in events.Scalars("reward/mean")]
    assert values == [(1, 1.0), (2, 2.0), (3, 30.0)]


class Recorder:
    def __init__(self, log: list[str], name: str, *, fails: bool = False) -> None:
        self.log, self.name, self.fails = log, name, fails

    def write(self, step, metrics) -> None:
        self.log.append(f"{self.name} {step} {metrics['x']}")

    def close(self) -> None:
        self.log.append(f"{self.name} closed")
        if self.fails:
            raise OSError("disk full")


def test_all_writers_get_every_step_and_are_closed_even_if_one_fails() -> None:
    log: list[str] = []
    writers = [Recorder(log, "a"), Recorder(log, "b", fails=True), Recorder(log, "c")]
    with pytest.raises(OSError, match="disk full"), CombinedWriter(writers) as writer:
        writer.write(1, {"x": 2.0})
    assert log == ["a 1 2.0", "b 1 2.0", "c 1 2.0", "c closed", "b closed", "a closed"]


def test_the_configuration_chooses_the_writers(tmp_path: Path) -> None:
    settings = ObserveConfig(tensorboard=False, ray_metrics=False)
    with make_writer(settings, tmp_path, run="demo", last_step=0) as writer:
        writer.write(1, {"reward/mean": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    settings = ObserveConfig(tensorboard=True, ray_metrics=False)
    with make_writer(settings, tmp_path, run="demo", last_step=1) as writer:
        writer.write(2, {"reward/mean": 1.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


@pytest.mark.parametrize("metric", ["reward/mean", "reward/my-part.2", "kl/reference"])
def test_gauge_names_are_valid_for_prometheus(metric: str) -> None:
    assert re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", gauge_name(metric))


def test_modules_load_without_ray_and_tensorboard() -> None:
    code = (
        "import sys, rlhf_ray.observe.metrics, rlhf_ray.observe.progress\n"
        "import rlhf_ray.observe.run_report\n"
        "print([m for m in ('ray', 'vllm', 'deepspeed', 'tensorboard') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert result.stdout.strip() == "[]"
