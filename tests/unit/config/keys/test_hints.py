"""Names of other libraries, and names in the wrong place: the message names the right one."""

from __future__ import annotations

import pytest

from rlhf_ray.config.errors import ConfigError
from rlhf_ray.config.keys.choices import group_choices
from rlhf_ray.config.keys.hints import FOREIGN_KEYS, GROUP_VALUES, METHOD_STAGES, WORD_STAGES
from rlhf_ray.config.load import load_config, load_values
from rlhf_ray.config.schema import all_keys


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("stage=grpo", "algorithm=grpo?"),
        ("stage=demo", "recipe=demo?"),
        ("stage=eval", "stage=evaluate?"),
        ("algorithm=sft", "stage=sft?"),
        ("algorithm=reward_model", "stage=reward_model?"),
        ("algorithm=rm", "stage=reward_model?"),
        ("algorithm=grppo", "algorithm=grpo?"),
        ("recipe=ppo", "algorithm=ppo?"),
        ("model=owner/name", "model.path=owner/name?"),
        ("data=/x/rows.jsonl", "data.path=/x/rows.jsonl?"),
        ("reward=/x/score.py:f", "reward.functions=[/x/score.py:f]?"),
        ("lr=1e-5", "training.learning_rate?"),
        ("learning_rate=1e-5", "training.learning_rate or critic.learning_rate?"),
        ("model_name_or_path=owner/name", "model.path?"),
        ("per_device_train_batch_size=4", "prompts_per_step?"),
        ("training.lr=1e-5", "training.learning_rate?"),
        ("critic.lr=1e-5", "critic.learning_rate?"),
        ("actor_rollout_ref.rollout.n=4", "samples_per_prompt?"),
        ("actor_rollout_ref.actor.optim.lr=1e-6", "training.learning_rate?"),
        ("trainer.total_epochs=4", "num_steps?"),
        ("data.train_files=x.parquet", "data.path?"),
        ("algorithm.kl_ctrl.kl_coef=0.1", "algorithm.kl_coefficient?"),
        ("num_generations=4", "samples_per_prompt?"),
        ("rollout.n=4", "samples_per_prompt?"),
        ("async=true", "max_staleness? (0 is synchronous, 1 or more trains while engines generate"),
        ("num_train_epochs=2", "num_steps? (an epoch of reinforcement learning is the number of"),
        (
            "gradient_accumulation_steps=4",
            "prompts_per_step or training.max_tokens_per_micro_batch? (there is no such number: ",
        ),
        ("seeds=4", "seed"),
    ],
)
def test_what_is_meant(argument, meant):
    with pytest.raises(ConfigError) as caught:
        load_config(["recipe=demo", argument])
    assert f"did you mean {meant}" in str(caught.value)


SFT = ("stage=sft", "model.path=a/b", "examples.path=rows.jsonl")
PREFERENCE = ("stage=preference", *SFT[1:])


@pytest.mark.parametrize(
    ("base", "argument", "meant"),
    [
        (SFT, "per_device_train_batch_size=4", "did you mean fit.batch_size?"),
        (SFT, "num_train_epochs=2", "did you mean fit.num_epochs?"),
        (
            SFT,
            "gradient_accumulation_steps=4",
            "did you mean fit.batch_size or training.max_tokens_per_micro_batch? (there is no such",
        ),
        (SFT, "learning_rate=1e-5", "did you mean training.learning_rate?"),
        (SFT, "max_length=64", "did you mean examples.max_tokens?"),
        (SFT, "data.train_files=rows.jsonl", "did you mean examples.path?"),
        (SFT, "train_files=rows.jsonl", "did you mean examples.path?"),
        (SFT, "fit.epochs=2", "did you mean fit.num_epochs?"),
        (PREFERENCE, "beta=0.1", "did you mean preference.beta?"),
        (PREFERENCE, "loss=dpo", "did you mean preference.loss?"),
        (
            SFT,
            "beta=0.1",
            "reads like algorithm.kl_coefficient or preference.beta, which stage=sft does not read",
        ),
    ],
)
def test_a_hint_names_keys_that_the_stage_reads(base, argument, meant):
    with pytest.raises(ConfigError) as caught:
        load_config([*base, argument])
    assert meant in str(caught.value)
    assert "is wrong: " in str(caught.value), "it is the only problem"


@pytest.mark.parametrize("group", ["stage", "algorithm", "recipe"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dpo", "DPO is stage=preference. There are"),
        ("KTO", "KTO is stage=preference preference.loss=kto. There are"),
        ("orpo", "ORPO is not implemented; stage=preference has DPO, IPO, SLIC, KTO. There are"),
    ],
)
def test_methods_that_are_stages(group, name, words):
    with pytest.raises(ConfigError) as caught:
        load_config([f"{group}={name}"])
    assert f"{group}={name}: no such choice; {words}" in str(caught.value)


@pytest.mark.parametrize("wrong", ["stage=dpo", "stage=sfft", "algorithm=dpo", "recipe=pipelines"])
def test_nothing_is_said_of_keys_where_the_stage_is_not_known(wrong):
    arguments = [wrong, "examples.path=rows.jsonl", "fit.batch_size=4", "batch_size=4"]
    with pytest.raises(ConfigError) as caught:
        load_config(arguments)
    assert "does not read" not in str(caught.value)
    assert "in 2 places" in str(caught.value)
    assert "batch_size: unknown key; did you mean prompts_per_step or fit.batch_size?" in (
        str(caught.value)
    )
    stage = {"examples.path": "r", "stage": "dpo"}
    with pytest.raises(ConfigError, match="is wrong: stage=dpo: no such choice"):
        load_values(stage)


def test_a_known_stage_next_to_another_wrong_choice_is_compared_with_the_keys():
    with pytest.raises(ConfigError, match=r"stage=sft does not read num_steps"):
        load_config([*SFT, "recipe=pipelines", "num_steps=4"])


def test_a_choice_that_means_nothing_has_no_hint():
    with pytest.raises(ConfigError, match=r"training=fsdp: no such choice; there are: cpu"):
        load_config(["recipe=demo", "training=fsdp"])


@pytest.mark.parametrize("value", ["/x/mine.yaml", "./mine.yaml", "demo.yaml", "dir/mine"])
def test_a_recipe_by_its_path_is_told_how_own_files_are_given(value):
    with pytest.raises(ConfigError) as caught:
        load_config([f"recipe={value}"])
    assert (
        f"recipe={value}: no such choice; recipe=NAME takes no path: write --config {value} for a "
        f"file of your own. There are: demo, "
    ) in str(caught.value)


def test_the_tables_name_keys_and_choices_that_exist():
    known = set(all_keys())
    assert [key for keys in FOREIGN_KEYS.values() for key in keys if key not in known] == []
    assert [name for name in FOREIGN_KEYS if name in known] == [], "a key means itself"
    stages = {meant.split()[0] for meant in (*METHOD_STAGES.values(), *WORD_STAGES.values())}
    for meant in METHOD_STAGES.values():
        load_config([*meant.split(), "model.path=a/b", "examples.path=rows.jsonl"])
    assert stages <= {f"stage={name}" for name in group_choices()["stage"]}
    assert set(GROUP_VALUES) <= set(group_choices())
