"""What is said where a stage's input is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.load import load_config, read_config
from rlhf_ray.config.run import Config
from rlhf_ray.stages.inputs import check_inputs, check_models, check_warmup


def config_of(stage: str = "sft", **paths: str | None) -> Config:
    config = Config()
    config.stage.name = stage
    config.model.path = paths.get("model") or "builtin:arithmetic"
    config.examples.path = paths.get("rows") or "package.module:rows"
    config.examples.eval_path = paths.get("held_out")
    return config


@pytest.mark.parametrize("model", ["builtin:arithmetic", "owner/name", "name"])
@pytest.mark.parametrize("rows", ["package.module:rows", "owner/name", "owner/name:config"])
def test_what_is_not_on_this_machine_is_left_to_its_reader(model: str, rows: str) -> None:
    check_inputs(config_of(model=model, rows=rows, held_out=rows))


def test_what_is_there_is_fine(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.touch()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    check_inputs(config_of(model=str(tmp_path), rows=str(rows), held_out=str(rows)))


@pytest.mark.parametrize(
    ("paths", "fragments"),
    [
        ({"model": "outputs/base/model"}, ["model.path is 'outputs/base/model'", "stage=pretrain"]),
        ({"model": "/nowhere"}, ["model.path is '/nowhere'", "FOLDER/model"]),
        ({"rows": "rows.jsonl"}, ["examples.path is 'rows.jsonl'", "demonstrations"]),
        ({"held_out": "a/b/c"}, ["examples.eval_path is 'a/b/c'", "stage=prepare_data"]),
    ],
)
def test_what_is_missing(paths: dict[str, str], fragments: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        check_inputs(config_of(**paths))
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []


def test_pre_training_asks_for_texts() -> None:
    with pytest.raises(RequestError, match="stage=pretrain learns from raw texts"):
        check_inputs(config_of("pretrain", rows="rows.jsonl"))


def test_a_warm_up_ends_before_the_run() -> None:
    check_warmup(0, 1)
    check_warmup(3, 4)
    with pytest.raises(RequestError, match=r"only 3 optimiser steps.*at most 2"):
        check_warmup(3, 3)


@pytest.mark.parametrize(
    ("overrides", "maker"),
    [
        (["model.path=outputs/x/model"], "sft"),
        (["critic.path=outputs/x/model"], "reward_model"),
        (["reference.path=outputs/x/model"], "sft"),
        (["reward.model.path=outputs/x/model"], "reward_model"),
    ],
)
def test_a_model_that_reinforcement_learning_lacks(overrides: list[str], maker: str) -> None:
    key = overrides[0].partition("=")[0]
    with pytest.raises(RequestError) as caught:
        check_models(load_config(["recipe=demo_ppo", *overrides]))
    message = str(caught.value)
    assert f"{key} is 'outputs/x/model': there is no such folder" in message
    assert f"stage={maker} model.path=" in message
    assert f"{key}=FOLDER/model" in message


@pytest.mark.parametrize("stage", ["serve", "chat"])
def test_a_model_to_serve(stage: str) -> None:
    unread = ["recipe=demo_ppo", "critic.path=outputs/y/model"]
    check_models(read_config([*unread, f"stage={stage}", "model.path=owner/name"]))
    with pytest.raises(RequestError, match=r"outputs/x/model.*stage=sft makes one"):
        check_models(read_config([*unread, f"stage={stage}", "model.path=outputs/x/model"]))


def test_a_model_that_nobody_reads_is_not_asked_for() -> None:
    unread = ["critic.path=outputs/x/model", "reference.path=outputs/x/model"]
    check_models(load_config(["recipe=demo", "algorithm.kl_coefficient=0", *unread]))


def test_models_that_are_evaluated(tmp_path: Path) -> None:
    for name in ("config.json", "weights.safetensors"):
        (tmp_path / name).touch()
    there = [f"evaluation.models.sft={tmp_path}", "evaluation.models.hub=a/b"]
    evaluate = ["recipe=demo", "stage=evaluate", *there]
    # What only training reads is not asked for.
    check_models(read_config([*evaluate, "model.path=/gone", "reference.path=/gone"]))
    with pytest.raises(RequestError, match=r"evaluation\.models\.rl is '/gone/model'.*stage=rl"):
        check_models(load_config([*evaluate, "evaluation.models.rl=/gone/model"]))
    kl = ["evaluation.kl=k1", "evaluation.samples=2", "reference.path=/gone"]
    with pytest.raises(RequestError, match=r"reference\.path is '/gone'.*stage=sft"):
        check_models(load_config([*evaluate, *kl]))
