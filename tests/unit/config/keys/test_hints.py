"""Names of other libraries, and names in the wrong place: the message names the right one."""

from __future__ import annotations

import pytest

from rlhf_ray.config.compose import group_choices
from rlhf_ray.config.errors import ConfigError
from rlhf_ray.config.keys.hints import FOREIGN_KEYS, GROUP_VALUES, METHOD_STAGES
from rlhf_ray.config.load import load_config
from rlhf_ray.config.schema import all_keys


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("stage=grpo", "algorithm=grpo?"),
        ("stage=demo", "recipe=demo?"),
        ("stage=dpo", "stage=preference?"),
        ("stage=kto", "stage=preference preference.loss=kto?"),
        ("stage=eval", "stage=evaluate?"),
        ("algorithm=sft", "stage=sft?"),
        ("recipe=ppo", "algorithm=ppo?"),
        ("model=owner/name", "model.path=owner/name?"),
        ("data=/x/rows.jsonl", "data.path=/x/rows.jsonl?"),
        ("reward=/x/score.py:f", "reward.functions=[/x/score.py:f]?"),
        ("lr=1e-5", "training.learning_rate?"),
        ("learning_rate=1e-5", "training.learning_rate or critic.learning_rate?"),
        ("model_name_or_path=owner/name", "model.path?"),
        ("per_device_train_batch_size=4", "prompts_per_step or fit.batch_size?"),
        ("num_generations=4", "samples_per_prompt?"),
        ("seeds=4", "seed"),
    ],
)
def test_what_is_meant(argument, meant):
    with pytest.raises(ConfigError) as caught:
        load_config(["recipe=demo", argument])
    assert f"did you mean {meant}" in str(caught.value)


def test_a_choice_that_means_nothing_has_no_hint():
    with pytest.raises(ConfigError, match=r"training=fsdp: no such choice; There are: cpu"):
        load_config(["recipe=demo", "training=fsdp"])


def test_the_tables_name_keys_and_choices_that_exist():
    known = set(all_keys())
    assert [key for keys in FOREIGN_KEYS.values() for key in keys if key not in known] == []
    assert [name for name in FOREIGN_KEYS if name in known] == [], "a key means itself"
    stages = {meant.split()[0] for meant in METHOD_STAGES.values()}
    assert stages <= {f"stage={name}" for name in group_choices()["stage"]}
    assert set(GROUP_VALUES) <= set(group_choices())
