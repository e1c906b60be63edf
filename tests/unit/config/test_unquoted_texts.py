"""Texts that YAML or Hydra would read as numbers, truths or dates."""

from __future__ import annotations

import datetime

import pytest

from rlhf_ray.config.errors import ConfigError
from rlhf_ray.config.load import load_values, read_config


def test_texts_of_sources_are_taken_as_they_are_typed():
    columns = "columns:{text:1.10}"
    told = ["sources.a.path=1.10", f"sources.b={{path:1e5,{columns},limit:1_0,weight:1.10}}"]
    told += ["sources.c=007", "evaluation_sets.d.dataset_split=1.0", "sources.a.limit=1_0"]
    prepare = read_config([f"prepare.{one}" for one in told]).prepare
    assert prepare.sources == {
        "a": {"path": "1.10", "limit": 10},
        "b": {"path": "1e5", "columns": {"text": "1.10"}, "limit": 10, "weight": 1.1},
        "c": "007",
    }
    assert prepare.evaluation_sets == {"d": {"dataset_split": "1.0"}}
    stage = "pipeline.stages={b:{stage:prepare_data,prepare.sources.a.path:1.10}}"
    assert read_config([stage]).pipeline.stages["b"]["prepare.sources.a.path"] == "1.10"


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("model.path", 1e5, "100000.0"),
        ("model.path", 7, "7"),
        ("model.path", True, "true"),
        ("data.split", datetime.date(2026, 1, 31), "2026-01-31"),
        ("training.freeze", ["a", datetime.date(2026, 1, 31)], "2026-01-31"),
        ("training.freeze", [7], "7"),
        ("placement.env", {"A": 7}, "7"),
        ("prepare.sources", {"a": {"path": datetime.date(2026, 1, 31)}}, "2026-01-31"),
        ("prepare.sources", {"a": {"path": 1.1, "kind": "text"}}, "1.1"),
        ("prepare.sources", {"a": {"path": "x", "kind": "text", "task": 7}}, "7"),
    ],
)
def test_what_yaml_reads_from_a_text_without_quotes_is_refused_with_the_way_out(key, value, shown):
    stage = "prepare_data" if key.startswith("prepare") else "rl"
    with pytest.raises(ConfigError) as refused:
        load_values({"stage": stage, key: value})
    words = f"{shown} is no text, and was perhaps written otherwise; put it in quotes"
    assert words in str(refused.value)


def test_null_where_only_text_is_wanted():
    with pytest.raises(ConfigError, match=r"data\.path=null: must be text, in quotes where"):
        read_config(["data.path=null"])
