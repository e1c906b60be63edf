"""Settings, keys, suggestions, the generated reference."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rlhf_ray.config.reference import reference
from rlhf_ray.config.schema import all_keys, nearest_keys
from rlhf_ray.config.setting import Setting

REFERENCE = Path(__file__).parents[3] / "docs" / "configuration.md"


@pytest.mark.parametrize(
    ("setting", "good", "bad", "words"),
    [
        (Setting(help="", minimum=1), [1, 2], [0], "must be at least 1"),
        (Setting(help="", maximum=1), [0, 1], [1.5], "must be at most 1"),
        (Setting(help="", above=0), [0.1], [0], "must be greater than 0"),
        (Setting(help="", below=1), [0.9], [1], "must be less than 1"),
        (Setting(help="", choices=("a", "b")), ["a"], ["c", ""], "must be one of a, b"),
        (Setting(help=""), [1.0, "x"], [math.nan, math.inf, -math.inf], "must be a finite number"),
        (Setting(help="", minimum=2, below=3), [2, None], [1], "must be at least 2"),
    ],
)
def test_bounds(setting, good, bad, words):
    assert [setting.violation(value) for value in good] == [None] * len(good)
    assert [setting.violation(value) for value in bad] == [words] * len(bad)


def test_rule_in_words():
    assert Setting(help="", above=0, maximum=2**31 - 1).rule() == "> 0, <= 2147483647"
    assert Setting(help="", choices=(0, 1)).rule() == "one of 0, 1"
    assert Setting(help="").rule() == ""


def test_every_default_keeps_its_own_rule():
    broken = {
        key.name: key.setting.violation(key.default)
        for key in all_keys().values()
        if key.setting.violation(key.default) is not None
    }
    assert broken == {}


def test_every_key_has_help_that_is_a_sentence():
    assert [k.name for k in all_keys().values() if not k.setting.help.endswith(".")] == []


def test_types_in_words():
    words = {name: key.type_words() for name, key in all_keys().items()}
    assert words["num_steps"] == "whole number"
    assert words["algorithm.reward_clip"] == "number or null"
    assert words["generation.stop"] == "list of text"
    assert words["reward.functions"] == "list"
    assert words["generation.extra_engine_args"] == "mapping of names to values"


@pytest.mark.parametrize(
    ("wrong", "first"),
    [
        ("training.learning_rat", "training.learning_rate"),
        ("trainig.learning_rate", "training.learning_rate"),
        ("generation.num_engine", "generation.num_engines"),
        ("zero_stage", "training.zero_stage"),
        ("temperature", "generation.temperature"),
        ("sed", "seed"),
        ("generation.tensor_paralel_size", "generation.tensor_parallel_size"),
    ],
)
def test_nearest_keys(wrong, first):
    assert nearest_keys(wrong)[0] == first


def test_unlike_anything():
    assert nearest_keys("zzzzzz") == []


def test_reference_is_current():
    assert REFERENCE.read_text(encoding="utf-8") == reference(), "run `make docs`"


def test_reference_has_every_key():
    page = reference()
    assert [name for name in all_keys() if f"| `{name}` |" not in page] == []
