"""Keys of DeepSpeed's configuration that users may pass on, and those that are refused."""

from __future__ import annotations

import pytest

from rlhf_ray.config.deepspeed.extra import ALLOWED, OWNED, UNSUPPORTED, extra_problems, merged
from rlhf_ray.config.schema import all_keys

REFUSED = {
    "owned": ({"gradient_clipping": 0.1}, ["critic.gradient_clip_norm"]),
    "owned group": ({"optimizer": {"type": "Adam"}}, ["critic.learning_rate"]),
    "owned in a group": ({"zero_optimization": {"stage": 2}}, ["critic.zero_stage"]),
    "second name": (
        {"zero_optimization": {"max_live_parameters": 1}},
        ["max_live_parameters", "critic.zero.max_live_elements"],
    ),
    "unsupported": ({"prescale_gradients": True}, ["summed over all ranks"]),
    "misspelt": (
        {"wall_clock_brakdown": True},
        ["no such key", "did you mean wall_clock_breakdown"],
    ),
    "misspelt and owned": (
        {"gradient_cliping": 1},
        ["did you mean gradient_clipping", "critic.gradient_clip_norm"],
    ),
    "misspelt in a group": (
        {"zero_optimization": {"sub_grup_size": 1}},
        ["zero_optimization.sub_grup_size", "did you mean sub_group_size"],
    ),
    "unlike any": ({"qqqq": 1}, ["no such key", "it may have"]),
    "no group": ({"zero_optimization": 3}, ["is a group of keys", "contiguous_gradients=..."]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_key_and_the_way_out(name):
    extra, words = REFUSED[name]
    (problem,) = extra_problems("critic", extra)
    assert problem.startswith("critic.extra_deepspeed_config.")
    assert all(word in problem for word in words), problem


def test_every_problem_is_listed():
    extra = {
        "optimizer": {},
        "dump_state": True,
        "zero_optimization": {"stage": 1, "cpu_offload": 1},
    }
    assert len(list(extra_problems("training", extra))) == 3


@pytest.mark.parametrize("section", ALLOWED)
def test_allowed_keys_pass(section):
    names = [name for name in ALLOWED[section] if name not in ALLOWED]
    assert names
    inner = dict.fromkeys(names, 1)
    assert list(extra_problems("training", {section: inner} if section else inner)) == []


def test_a_key_has_one_answer():
    allowed = {f"{s}.{name}".lstrip(".") for s, names in ALLOWED.items() for name in names}
    assert not allowed & OWNED.keys()
    assert not allowed & UNSUPPORTED.keys()
    assert not OWNED.keys() & UNSUPPORTED.keys()


def test_the_settings_to_use_instead_exist():
    keys = all_keys()
    for setting in OWNED.values():
        for name in setting.replace("{group}", "training").replace(",", " ").split():
            if name.startswith("training."):
                assert name in keys, name


def test_groups_are_merged_and_nothing_is_changed_in_place():
    config = {"a": 1, "zero_optimization": {"stage": 3, "overlap_comm": True}}
    extra = {"b": 2, "zero_optimization": {"overlap_comm": False, "sub_group_size": 5}}
    assert merged(config, extra) == {
        "a": 1,
        "b": 2,
        "zero_optimization": {"stage": 3, "overlap_comm": False, "sub_group_size": 5},
    }
    assert config == {"a": 1, "zero_optimization": {"stage": 3, "overlap_comm": True}}
