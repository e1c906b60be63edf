"""Values for one stage of a pipeline join what the recipe says of it; the last one wins."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.pipeline import read_stages
from rlhf_ray.config.keys.choices import group_choices
from rlhf_ray.config.keys.stage_entries import set_in_stages, told_stages
from rlhf_ray.config.load import load_config, load_values, read_config, to_yaml
from rlhf_ray.config.run import Config

DEMO = ("recipe=pipeline_demo", "output_dir=out")
# A choice and a key of every group of files, with another value than any file gives it.
KEYS = {
    "algorithm": ("ppo", "gae_lambda", 0.123),
    "model": ("smollm2", "trust_remote_code", True),
    "data": ("arithmetic", "max_prompt_tokens", 123),
    "generation": ("cpu", "max_response_tokens", 123),
    "training": ("cpu", "warmup_steps", 12),
    "reward": ("arithmetic", "max_failure_rate", 0.123),
    "placement": ("colocated", "gpu_memory_gib", 123.0),
    "rollout_selection": ("oversample", "success_reward", 0.123),
}


def stage(config: Config, name: str) -> Config:
    """The configuration of a stage, without the rules between keys and required values."""
    entry = next(one for one in read_stages(config.pipeline, "out") if one.name == name)
    return load_values(entry.values)


def value_of(config: Config, key: str) -> object:
    found: object = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(
    ("told", "key", "value"),
    [
        ("algorithm.kl_coefficient=0.1", "algorithm.kl_coefficient", 0.1),
        ("algorithm.critic_warmup_steps=1", "algorithm.critic_warmup_steps", 1),
        ("algorithm={critic_warmup_steps: 1}", "algorithm.critic_warmup_steps", 1),
    ],
)
def test_a_key_leaves_the_choice_of_its_group(told, key, value):
    ppo = stage(load_config([*DEMO, f"pipeline.stages.ppo.{told}"]), "ppo")
    assert ppo.algorithm.name == "ppo"
    assert value_of(ppo, key) == value
    assert ppo.algorithm.value_clip == 0.5, "the recipe's other key of the group"


def test_a_choice_leaves_the_keys_of_its_group():
    told = ["pipeline.stages.sft.training=gpu", "pipeline.stages.ppo.algorithm=grpo"]
    config = read_config([*DEMO, *told])
    sft, ppo = config.pipeline.stages["sft"], config.pipeline.stages["ppo"]
    assert (sft["training"], sft["training.learning_rate"]) == ("gpu", 3e-3)
    assert (ppo["algorithm"], ppo["algorithm.value_clip"]) == ("grpo", 0.5)


def test_every_group_of_files_is_here():
    assert set(KEYS) == set(group_choices()) - {"stage", "recipe"}


@pytest.mark.parametrize("place", ["command", "file"])
@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize("in_recipe", ["nested", "dotted", "none"])
@pytest.mark.parametrize("group", KEYS)
def test_all_forms_and_places(group, in_recipe, is_nested, place, tmp_path):
    choice, key, value = KEYS[group]
    old = {"nested": {group: {key: 7}}, "dotted": {f"{group}.{key}": 7}, "none": {}}[in_recipe]
    entry = {"stage": "rl", **({} if in_recipe == "nested" else {group: choice}), **old}
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump({"stage": "pipeline", "pipeline": {"stages": {"a": entry}}}))
    told = {group: {key: value}} if is_nested else {f"{group}.{key}": value}
    if place == "command":
        text = yaml.safe_dump(told[group], default_flow_style=True).strip() if is_nested else value
        more = [
            f"pipeline.stages.a.{group}={text}"
            if is_nested
            else f"pipeline.stages.a.{group}.{key}={value}"
        ]
    else:
        own = tmp_path / "own.yaml"
        own.write_text(yaml.safe_dump({"pipeline": {"stages": {"a": told}}}))
        more = [f"--config={own}"]
    found = read_config([f"--config={base}", *more]).pipeline.stages["a"]
    if in_recipe == "nested":
        assert found == {"stage": "rl", group: {key: value}}
    else:
        assert found == {"stage": "rl", group: choice, f"{group}.{key}": value}
    chosen = read_config([f"--config={base}", *more, f"pipeline.stages.a.{group}={choice}"])
    assert chosen.pipeline.stages["a"] == {"stage": "rl", group: choice, f"{group}.{key}": value}


def test_the_command_line_wins_over_the_file(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(
        "recipe: pipeline_demo\npipeline:\n  stages:\n    ppo:\n"
        "      algorithm: {kl_coefficient: 0.2, critic_warmup_steps: 2}\n      num_steps: 9\n"
    )
    told = [f"--config={own}", "output_dir=out", "pipeline.stages.ppo.algorithm.kl_coefficient=0.3"]
    ppo = stage(load_config(told), "ppo")
    assert (ppo.algorithm.name, ppo.num_steps) == ("ppo", 9)
    assert (ppo.algorithm.kl_coefficient, ppo.algorithm.critic_warmup_steps) == (0.3, 2)


def test_what_is_shown_reads_back(tmp_path):
    config = load_config([*DEMO, "pipeline.stages.ppo.algorithm.critic_warmup_steps=1"])
    shown = tmp_path / "config.yaml"
    shown.write_text(to_yaml(config))
    assert load_config([f"--config={shown}"]).pipeline == config.pipeline


def test_stages_that_are_whole_replace_those_of_the_recipe():
    whole = {"a": {"stage": "sft"}}
    assert told_stages({"b": {"stage": "rl"}}, whole) == whole
    assert told_stages({"b": {"stage": "rl", "seed": 1}}, {"b": {"seed": 2}, **whole}) == {
        "b": {"stage": "rl", "seed": 2},
        **whole,
    }


def test_entries_of_a_mapping():
    stages = {"data": {"stage": "prepare_data", "prepare": {"sources": {"a": {"path": "x"}}}}}
    before = copy.deepcopy(stages)
    found = dict(stages)
    set_in_stages(found, "data.prepare.sources.a.path", "y")
    set_in_stages(found, "data.prepare.sources.b", {"path": "z"})
    set_in_stages(found, "data.prepare.duplicates", "keep")
    assert found["data"]["prepare"] == {
        "sources": {"a": {"path": "y"}, "b": {"path": "z"}},
        "duplicates": "keep",
    }
    assert stages == before, "what is told is not changed"
    set_in_stages(found, "data.prepare.sources", {"c": {"path": "w"}})
    assert found["data"]["prepare"]["sources"] == {"c": {"path": "w"}}


def test_a_stage_that_is_not_there(tmp_path: Path):
    config = read_config([*DEMO, "pipeline.stages.pppo.num_steps=3", f"output_dir={tmp_path}"])
    with pytest.raises(RequestError, match=r"pipeline\.stages\.pppo: .*the others are: data, pre"):
        read_stages(config.pipeline, "out")
