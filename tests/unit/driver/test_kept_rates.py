"""A run that goes on keeps its learning rate where the request names none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.load import load_config, rates_by_default
from rlhf_ray.config.run import Config
from rlhf_ray.driver.checkpoint_folders import Checkpoints
from rlhf_ray.driver.kept_rates import with_kept_rates
from rlhf_ray.run_folder.finished import FILE_NAME

KEY = "training.learning_rate"


@pytest.fixture
def kept(tmp_path: Path):
    """The configuration of a command in this folder, and the lines about its rates."""

    def call(*more: str) -> tuple[Config, list[str]]:
        own = ["stage=sft", "model.path=builtin:arithmetic", "examples.path=x.jsonl"]
        told = [*own, f"output_dir={tmp_path}", *more]
        lines: list[str] = []
        config = load_config(told)
        return with_kept_rates(config, lambda: rates_by_default(told), lines.append), lines

    return call


def write(folder: Path, step: int, **configuration: Any) -> Path:
    checkpoints = Checkpoints(folder, keep_last=9)
    place = checkpoints.begin(step)
    checkpoints.commit(place, {"step": step, "configuration": configuration})
    return place


def test_the_rate_of_the_checkpoint_is_kept_unless_one_is_named(tmp_path, kept):
    assert kept()[1] == []
    older = write(tmp_path, 2, **{KEY: 1e-6})
    newest = write(tmp_path, 4, **{KEY: 3e-6, "critic.learning_rate": 1e-5})
    config, (line,) = kept()
    assert config.training.learning_rate == 3e-6
    assert f"{KEY} is 3e-06, that of the checkpoint {newest}" in line
    assert f"{KEY}=2e-05 takes that" in line
    for named in (f"{KEY}=2e-5", f"{KEY}=3e-6"):
        config, lines = kept(named)
        assert config.training.learning_rate == float(named.partition("=")[2])
        assert lines == []
    assert kept("resume=never")[0].training.learning_rate == 2e-5
    assert kept(f"resume={older}")[0].training.learning_rate == 1e-6
    (newest / "run.json").write_text("{")
    assert kept()[0].training.learning_rate == 1e-6


def test_a_finished_run_is_the_same_one_under_a_new_default(tmp_path, kept):
    record = {"stage": "sft", "settings": {KEY: 1e-6}, "inputs": {}, "model": {}, "at": "now"}
    (tmp_path / FILE_NAME).write_text(json.dumps(record))
    config, (line,) = kept()
    assert config.training.learning_rate == 1e-6
    assert "that of the finished run in its folder" in line


def test_a_checkpoint_without_rates_or_a_configuration_changes_nothing(tmp_path, kept):
    place = write(tmp_path, 2, **{KEY: None})
    assert kept() == (kept()[0], [])
    assert kept()[0].training.learning_rate == 2e-5
    (place / "COMMITTED").unlink()
    assert kept()[0].training.learning_rate == 2e-5
