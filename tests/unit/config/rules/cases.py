"""Cases of the rules between keys, and the checks that every case goes through."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from rlhf_ray.config.errors import ConfigError
from rlhf_ray.config.load import load_config, read_config
from rlhf_ray.config.rules.table import cross_field_problems
from rlhf_ray.config.schema import all_keys

GPU = ["generation=gpu", "training=gpu"]
COLOCATED_GPU = ["placement=colocated", *GPU]
PREPARE = ["stage=prepare_data", "prepare.sources.a={path:a.jsonl,kind:preference}"]
SERVE = ["stage=serve_reward", "reward.model.path=a/b"]
CHAT_MODEL = ["stage=serve", "model.path=a/b"]
SERVICE = ["reward.url=http://127.0.0.1:8000"]
EVALUATE = ["stage=evaluate", "evaluation.models.sft=a/b"]
WHILE_TRAINING = ["evaluation.every=2", "evaluation.path=held_out.jsonl"]

# A base that is fine only together with the repair (the rule has two sides).
_NOT_FINE_ALONE = {"colocated devices"}


class Case(NamedTuple):
    """One way to break a rule.

    Attributes:
        name: test id.
        base: overrides that are fine; on top of recipe=demo, except in cases of a stage.
        breaking: overrides that break the rule.
        fragments: parts of the message: key, value and fix.
        repair: overrides that the message asks for.
    """

    name: str
    base: list[str]
    breaking: list[str]
    fragments: list[str]
    repair: list[str]


def each(rows):
    """Run a test once for every case, written as the tuple of its fields."""
    cases = [Case(*row) for row in rows]
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def check_rule(case):
    """The base is fine, the break is refused in one line, and the repair works."""
    demo = case._replace(base=["recipe=demo", *case.base])
    if case.name not in _NOT_FINE_ALONE:
        load_config(demo.base)
    check_rule_of_a_stage(demo)


def check_rule_of_a_stage(case):
    """Like `check_rule`, for a stage that no recipe of reinforcement learning is a base of."""
    with pytest.raises(ConfigError) as caught:
        load_config([*case.base, *case.breaking])
    message = str(caught.value)
    missing = [fragment for fragment in case.fragments if fragment not in message]
    assert missing == [], f"{missing} not in: {message}"
    assert "\n" not in message, "one problem, one line"
    load_config([*case.base, *case.repair])


def check_broken_values(case):
    """A rule is not asked about a value that was refused already."""
    config = read_config(["recipe=demo", *case.base, *case.breaking])
    keys = {_known_key(override.partition("=")[0]) for override in case.breaking}
    assert cross_field_problems(config, without=keys) == []


def _known_key(name):
    return next(key for key in all_keys() if name == key or name.startswith(key + "."))
