"""finished.json as anyone may have left it: a record, or none."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from rlhf_ray.config.run import Config
from rlhf_ray.run_folder.finished import FILE_NAME, read_finished, write_finished

RECORD = {
    "stage": "rl",
    "settings": {"num_steps": 3},
    "inputs": {},
    "model": {"config.json": 10},
    "at": "2026-01-01 00:00:00",
}


def write(folder, values) -> None:
    (folder / FILE_NAME).write_text(json.dumps(values))


def test_a_record(tmp_path):
    write(tmp_path, RECORD)
    finished = read_finished(tmp_path)
    assert finished is not None
    assert finished.length() == "num_steps=3"
    assert not finished.has_its_model(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {**RECORD, "settings": []},
        {**RECORD, "settings": None},
        {**RECORD, "settings": {"num_steps": "three"}},
        {**RECORD, "settings": {"fit.num_epochs": [1]}},
        {**RECORD, "inputs": 1},
        {**RECORD, "model": [["config.json", 10]]},
        {**RECORD, "stage": 1},
        {**RECORD, "at": None},
        {**RECORD, "more": 1},
        {"stage": "rl"},
        [RECORD],
        None,
    ],
)
def test_anything_else_is_none(values, tmp_path):
    write(tmp_path, values)
    assert read_finished(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"stage": "\\ud800"', "\x00"])
def test_what_is_no_json_is_none(text, tmp_path):
    (tmp_path / FILE_NAME).write_text(text)
    assert read_finished(tmp_path) is None


def test_files_in_sub_folders_of_an_input_count(tmp_path: Path):
    (tmp_path / "rows" / "more").mkdir(parents=True)
    (tmp_path / "rows" / "a.jsonl").write_text("{}")
    (tmp_path / "rows" / "more" / "b.jsonl").write_text("{}")
    config = Config()
    config.data.path = str(tmp_path / "rows")
    write_finished(tmp_path, config)
    finished = read_finished(tmp_path)
    assert finished is not None
    assert finished.differences(config) == []
    (tmp_path / "rows" / ".cache").mkdir()
    (tmp_path / "rows" / ".cache" / "lock").touch()
    assert finished.differences(config) == [], "a hidden folder is no input"
    earlier = {"a.jsonl": finished.inputs[config.data.path]["a.jsonl"]}
    of_earlier_release = dataclasses.replace(finished, inputs={config.data.path: earlier})
    (tmp_path / "rows" / "more" / "b.jsonl").write_text("{ }")
    assert finished.differences(config) == [f"{config.data.path} has changed since"]
    assert of_earlier_release.differences(config) == [], "it knows the files of the folder itself"
    (tmp_path / "rows" / "a.jsonl").write_text("{ }")
    assert of_earlier_release.differences(config) == [f"{config.data.path} has changed since"]


def test_a_key_that_the_release_of_the_record_did_not_have_is_its_default(tmp_path: Path):
    config = Config()
    config.fit.batch_size = 7
    write_finished(tmp_path, config)
    finished = read_finished(tmp_path)
    assert finished is not None
    earlier = dict(finished.settings)
    earlier["fit.samples_per_step"] = earlier.pop("fit.batch_size")
    del earlier["algorithm.kl_gradient"], earlier["generation.extra_engine_args"]
    earlier["a.key.of.then"] = 1
    of_earlier_release = dataclasses.replace(finished, settings=earlier)
    assert of_earlier_release.differences(config) == []
    config.algorithm.kl_gradient = "unbiased"
    assert of_earlier_release.differences(config) == [
        'algorithm.kl_gradient="estimator" there, "unbiased" here'
    ]


def test_an_entry_that_is_gone_is_a_difference(tmp_path: Path):
    config = Config()
    config.generation.extra_engine_args = {"block_size": 32}
    write_finished(tmp_path, config)
    finished = read_finished(tmp_path)
    assert finished is not None
    config.generation.extra_engine_args = {}
    assert "generation.extra_engine_args.block_size=32 there, null here" in finished.differences(
        config
    )
