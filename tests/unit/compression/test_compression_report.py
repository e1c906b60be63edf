"""The report on compressed models: gains, losses, and forms that do not run."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_ray.compression.compression_report import Form, describe, table, weight_bytes
from rlhf_ray.compression.request import Compressed
from rlhf_ray.generation.speed import Speed
from rlhf_ray.observe.figures import FORM_FIGURES


def form(folder: Path, name: str, *, size: int, speed: Speed | None, error: str = "") -> Form:
    path = None if error else folder / name
    if path is not None:
        path.mkdir()
        (path / "model.safetensors").write_bytes(b"x" * size)
        (path / "config.json").write_bytes(b"x" * 1000)
    compressed = Compressed(
        name=name, path=path, perplexity=1.5, zero_share=0.5, seconds=1.0, error=error
    )
    return Form(compressed=compressed, speed=speed)


@pytest.fixture
def report(tmp_path):
    forms = [
        form(tmp_path, "original", size=4000, speed=Speed(tokens_per_s=100.0, error="")),
        form(tmp_path, "int8", size=1000, speed=Speed(tokens_per_s=None, error="no kernel")),
        form(tmp_path, "wanda", size=4000, speed=Speed(tokens_per_s=90.0, error="")),
        form(tmp_path, "int4", size=0, speed=None, error="ValueError: too odd"),
    ]
    reward = {"mean": 0.75, "standard_error": 0.1}
    wins = {"mean": 0.45, "low": 0.4, "high": 0.5}
    models = {
        "original": {"greedy": {"reward": reward, "win_rate": None}, "sampled": None},
        "wanda": {"greedy": {"reward": reward, "win_rate": wins}, "sampled": None},
    }
    return describe(forms, {"models": models})


def test_description(report):
    forms = report["forms"]
    assert forms["original"]["bytes"] == 4000
    assert forms["wanda"]["win_rate"]["mean"] == 0.45
    assert [name for name, found in forms.items() if found["runs_here"]] == ["original", "wanda"]
    assert forms["int8"]["engine_error"] == "no kernel"
    assert forms["int8"]["reward"] is None
    assert forms["int4"]["bytes"] is None


def test_every_figure_that_a_pipeline_may_report_is_there(report):
    texts = {"path", "error", "engine_error"}
    assert set(report["forms"]["original"]) - texts == set(FORM_FIGURES)


def test_the_table(report):
    lines = table(report).splitlines()
    assert len({len(line) for line in lines[:6]}) == 1
    assert lines[3].split("|")[3].strip() == "0.25"
    assert lines[4].split("|")[8].strip() == "0.45"
    assert lines[-2:] == [
        "int8: the engine here does not run it: no kernel",
        "int4: ValueError: too odd",
    ]


def test_nothing_is_evaluated(report, tmp_path):
    other = describe([form(tmp_path, "alone", size=1, speed=None)], None)
    assert other["forms"]["alone"]["reward"] is None


def test_other_files_are_no_weights(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"12")
    (tmp_path / "tokenizer.json").write_bytes(b"345")
    assert weight_bytes(tmp_path) == 2
