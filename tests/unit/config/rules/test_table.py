"""The table of all rules: every rule has a case, holds only for its stages, reads known keys."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from rlhf_ray.config.errors import ConfigError
from rlhf_ray.config.load import load_config, read_config
from rlhf_ray.config.rules.table import ALL_RULES, cross_field_problems
from rlhf_ray.config.schema import all_keys, group_names
from tests.unit.config.rules.cases import PREPARE


def _all_cases():
    """Base and breaking overrides of the cases in all files here and in the folders below."""
    here = Path(__file__).parent
    for file in sorted(here.rglob("test_*.py")):
        name = ".".join(file.relative_to(here).with_suffix("").parts)
        module = vars(importlib.import_module(f"tests.unit.config.rules.{name}"))
        for _, base, breaking, *_ in module.get("CASES", []):
            yield ["recipe=demo", *base], breaking
        for _, base, breaking, *_ in module.get("STAGE_CASES", []):
            yield base, breaking


def _broken_rules(base, breaking):
    config = read_config([*base, *breaking])
    rules = [rule for rule in ALL_RULES if config.stage.name in rule.stages]
    return [rule for rule in rules if list(rule.problems(config))]


@pytest.mark.unit_slow
def test_every_rule_has_a_case():
    broken = [_broken_rules(base, breaking) for base, breaking in _all_cases()]
    covered = {rule.about for rules in broken for rule in rules}
    assert {rule.about for rule in ALL_RULES} - covered == set()


def test_a_rule_holds_only_for_its_stages():
    """The data stage needs no model; training does not care about sources."""
    load_config(PREPARE)
    assert cross_field_problems(read_config([*PREPARE, "samples_per_prompt=1"])) == []
    unread = ["prepare.split=[1]", "prepare.total_samples=3"]
    assert cross_field_problems(read_config(["recipe=demo", *unread])) == []
    with pytest.raises(ConfigError, match="output_dir is empty"):
        load_config([*PREPARE, "output_dir="])


def test_rules_name_keys_that_exist():
    known = {*all_keys(), *group_names()}
    assert [key for rule in ALL_RULES for key in rule.keys if key not in known] == []


def test_all_problems_are_in_one_message():
    with pytest.raises(ConfigError) as caught:
        load_config(
            ["recipe=demo", "num_steps=x", "training.zero_stage=9", "algorithm.kl_estimator=k1"]
        )
    message = str(caught.value)
    assert message.startswith("the configuration is wrong in 3 places:\n")
    assert [line.split(":")[0] for line in message.splitlines()[1:]] == [
        "  - num_steps=x",
        "  - training.zero_stage=9",
        "  - algorithm.kl_estimator=k1",
    ]
