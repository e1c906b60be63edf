"""Stages, folders and figures of a pipeline."""

from __future__ import annotations

import pytest

from rlhf_ray.config.errors import ConfigError, RequestError
from rlhf_ray.config.groups.pipeline import PipelineConfig, read_report, read_stages
from rlhf_ray.config.load import load_config, load_values

DATA = {"stage": "prepare_data", "prepare": {"sources": {"rows": {"path": "x", "kind": "text"}}}}


def test_folders_of_earlier_stages_are_filled_in_everywhere():
    later = {
        "stage": "sft",
        "model": {"path": "{data}/m"},
        "reward.functions": [{"path": "{data}/f"}],
    }
    pipeline = PipelineConfig(stages={"data": DATA, "sft": later})
    data, sft = read_stages(pipeline, "/out")
    assert data.values == DATA
    assert sft.name == "sft"
    assert sft.values["model"] == {"path": "/out/data/m"}
    assert sft.values["reward.functions"] == [{"path": "/out/data/f"}]
    assert later["model"] == {"path": "{data}/m"}, "the entry is not changed"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"a b": DATA}, "pipeline.stages.a b: a stage's name has letters"),
        ({"a": ["stage=sft"]}, "must be a mapping that names its stage"),
        ({"a": {"num_steps": 3}}, "must be a mapping that names its stage"),
        ({"a": {"stage": "pipeline"}}, "a pipeline cannot contain a pipeline"),
        ({"a": {"stage": "chat"}}, "stage=chat: this stage runs until it is stopped"),
        ({"a": {"stage": "serve"}}, "stage=serve: this stage runs until it is stopped"),
        ({"a": {"stage": "serve_reward"}}, "this stage runs until it is stopped"),
        ({"a": {"stage": "sft", "seed": 1}}, "pipeline.stages.a.seed: the pipeline sets it"),
        (
            {"a": {"stage": "sft", "model": {"path": "{b}/model"}}, "b": DATA},
            "pipeline.stages.a.model.path={b}/model: there is no stage 'b' before this one",
        ),
    ],
)
def test_wrong_stages_are_refused(stages, message):
    with pytest.raises(RequestError) as error:
        read_stages(PipelineConfig(stages=stages), "/out")
    assert message in str(error.value)


def test_figures_are_read():
    pipeline = PipelineConfig(stages={"ppo": DATA}, report={"after": "ppo:parts_last.helpful"})
    (figure,) = read_report(pipeline)
    assert (figure.name, figure.stage) == ("after", "ppo")
    assert figure.path == ("parts_last", "helpful")


@pytest.mark.parametrize("text", ["ppo", "sft:loss", "ppo:"])
def test_wrong_figures_are_refused(text):
    with pytest.raises(RequestError, match=r"must be STAGE:PATH with one of the stages ppo"):
        read_report(PipelineConfig(stages={"ppo": DATA}, report={"after": text}))


def test_values_are_read_like_a_command_line():
    overrides = ["recipe=demo", "num_steps=7", "training.learning_rate=0.5", "model=smollm2"]
    values = {
        "recipe": "demo",
        "num_steps": 7,
        "training": {"learning_rate": 0.5},
        "model": "smollm2",
    }
    assert load_values(values) == load_config(overrides)


def test_wrong_values_are_refused():
    with pytest.raises(ConfigError, match=r"recipe=dmo: no such choice; did you mean recipe=demo"):
        load_values({"recipe": "dmo"})


def test_one_value_of_a_stage_is_set_on_the_command_line():
    config = load_config(["recipe=pipeline_demo", "pipeline.stages.sft.fit.max_steps=5"])
    stages = {stage.name: stage.values for stage in read_stages(config.pipeline, "/out")}
    assert stages["sft"]["fit"]["max_steps"] == 5
    assert stages["sft"]["fit"]["batch_size"] > 1, "the other values stay"
