"""Mistakes about the model of a later stage are found before the first one starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rlhf_ray.config.errors import ConfigError, RequestError
from rlhf_ray.config.load import load_config
from rlhf_ray.config.run import Config
from rlhf_ray.stages.pipeline import STAGE, read_steps, waiting_steps
from rlhf_ray.stages.steps.ahead import check_ahead, check_sizes
from rlhf_ray.stages.steps.origins import known_parts
from rlhf_ray.testing.tiny import tiny_random

pytestmark = pytest.mark.unit_slow
ROWS = "rlhf_ray.data.builtin:arithmetic"
PROMPTS = f"data.path: '{ROWS}', data.answer_column: answer"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return Path(tiny_random(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def parts(model, tmp_path):
    def read(*overrides: str) -> list[tuple[str, Config]]:
        sft = f"{{stage: sft, model.path: '{model}', examples.path: '{ROWS}'}}"
        rl = "{recipe: demo, stage: rl, model.path: '{tuned}/model'}"
        told = [f"pipeline.stages.tuned={sft}", f"pipeline.stages.ppo={rl}", *overrides]
        config = load_config(["stage=pipeline", f"output_dir={tmp_path}/out", *told])
        return [(step.name, step.config) for step in read_steps(config)]

    return read


def test_a_model_that_is_made_later_has_the_shapes_of_its_origin(parts, model):
    tuned, ppo = known_parts(parts())
    assert (tuned.config.model.path, tuned.replaced) == (str(model), frozenset())
    assert (ppo.config.model.path, ppo.replaced) == (str(model), {"model.path"})


def test_right_stages_pass_and_nothing_is_written(parts, tmp_path):
    check_sizes(parts())
    check_ahead(parts())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "judge", ["{tuned}/model", "{tuned}/model_ema", "{small}/int8", "{tuned}/other", "owner/name"]
)
def test_a_judge_that_is_made_later_or_is_of_the_hub_is_not_looked_at(parts, model, judge):
    small = f"{{stage: compress, model.path: '{model}', {PROMPTS}}}"
    rl = (
        f"{{recipe: demo, stage: rl, model.path: '{{tuned}}/model', reward.judge.model: '{judge}'}}"
    )
    told = (f"pipeline.stages.small={small}", f"pipeline.stages.judged={rl}")
    judged = known_parts(parts(*told))[-1]
    is_trained = judge.startswith("{tuned}/model")
    assert judged.replaced == {"model.path", *(["reward.judge.model"] if is_trained else [])}
    assert judged.unknown == (set() if is_trained else {"reward.judge.model"})
    check_ahead(parts(*told))
    # What can be known of the other models is.
    with pytest.raises(RequestError, match=r"pipeline\.stages\.judged: .*freeze_layers=99"):
        check_ahead(parts(*told, "pipeline.stages.judged.training.freeze_layers=99"))


def test_a_judge_that_is_there_is_looked_at(parts, model, tmp_path):
    judge = tmp_path / "judge"
    shutil.copytree(model, judge)
    (judge / "model.safetensors").write_bytes(b"half")
    told = f"pipeline.stages.ppo.reward.judge.model={judge}"
    with pytest.raises(RequestError, match=r"pipeline\.stages\.ppo: .*reward\.judge\.model"):
        check_ahead(parts(told))


def test_every_model_of_an_evaluation_is_replaced(parts, model):
    scored = f"{PROMPTS}, reward.functions: [exact_match]"
    models = "evaluation.models: {tuned: '{tuned}/model', other.name: '{ppo}/model'}"
    told = f"{{stage: evaluate, {models}, {scored}, generation.kv_cache_gib: 1}}"
    found = known_parts(parts(f"pipeline.stages.measured={told}"))[-1]
    assert found.config.evaluation.models == {"tuned": str(model), "other.name": str(model)}
    assert found.replaced == {"evaluation.models.tuned", "evaluation.models.other.name"}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("training.lora={r: 2, target_modules: [query]}", "training.lora.target_modules"),
        ("training.freeze_layers=99", "training.freeze_layers=99"),
        ("generation.max_response_tokens=99000", "make sequences of up to"),
        ("reference.sequence_parallel_size=3", "sequence_parallel_size"),
    ],
)
def test_a_later_stage_whose_model_cannot_do_it(parts, told, words):
    more = {
        "generation.max_response_tokens=99000": [
            *(f"{role}.max_tokens_per_micro_batch=200000" for role in ("training", "reference")),
            *("generation.max_num_batched_tokens=200000",),
        ],
        "reference.sequence_parallel_size=3": [
            "reference.num_ranks=3",
            "algorithm.kl_coefficient=0.1",
        ],
    }.get(told, [])
    told_all = [f"pipeline.stages.ppo.{one}" for one in (told, *more)]
    with pytest.raises(RequestError) as caught:
        check_ahead(parts(*told_all))
    assert str(caught.value).startswith("pipeline.stages.ppo: ")
    assert words in str(caught.value)


def test_gpus_that_are_too_small_are_found_in_a_dry_run(parts):
    told = ["training.num_gpus=1", "generation.num_gpus=1", "placement.gpu_memory_gib=0.001"]
    with pytest.raises(RequestError, match=r"pipeline\.stages\.ppo: .*do not fit on GPUs"):
        check_sizes(parts(*(f"pipeline.stages.ppo.{one}" for one in told)))


def test_a_disk_that_is_too_small(parts, monkeypatch):
    monkeypatch.setattr("rlhf_ray.planning.storage.disk.free_bytes", lambda _: 10)
    with pytest.raises(RequestError) as caught:
        check_ahead(parts())
    assert "pipeline.stages.tuned: output_dir=" in str(caught.value)
    assert "pipeline.stages.ppo: output_dir=" in str(caught.value)


def test_a_warm_up_as_long_as_the_run(parts):
    told = ("fit.max_steps=10", "training.warmup_steps=10")
    with pytest.raises(ConfigError, match="has at most 10 optimiser steps"):
        parts(*(f"pipeline.stages.tuned.{one}" for one in told))


def test_what_only_a_later_stage_writes_is_missing(model, tmp_path):
    def check(first: str, second: str) -> None:
        stages = (
            f"pipeline.stages.a={{stage: sft, model.path: '{first}', examples.path: '{ROWS}'}}",
            f"pipeline.stages.b={{stage: sft, model.path: '{second}', examples.path: '{ROWS}'}}",
        )
        STAGE.check(load_config(["stage=pipeline", f"output_dir={tmp_path}/out", *stages]))

    check(str(model), f"{tmp_path}/out/a/model")
    with pytest.raises(RequestError, match=r"pipeline\.stages\.a: model\.path is '.*out/b/model'"):
        check(f"{tmp_path}/out/b/model", str(model))
    with pytest.raises(RequestError, match=r"pipeline\.stages\.b: model\.path is '.*out/b/model'"):
        check(str(model), f"{tmp_path}/out/b/model")
    with pytest.raises(RequestError, match=r"pipeline\.stages\.b: model\.path is '.*out/c/model'"):
        check(str(model), f"{tmp_path}/out/c/model")


def test_what_an_unfinished_stage_left_is_not_looked_at(model, tmp_path):
    """A stage that was killed while it saved its model is run again, and writes it anew."""
    told = [
        f"pipeline.stages.{name}={{stage: sft, model.path: '{path}', examples.path: '{ROWS}'}}"
        for name, path in (("a", model), ("b", "{a}/model"))
    ]
    config = load_config(["stage=pipeline", f"output_dir={tmp_path}/out", *told])
    first, _ = read_steps(config)
    half = tmp_path / "out" / "a" / "model"
    half.mkdir(parents=True)
    shutil.copy(model / "config.json", half)

    def record(**more: float) -> None:
        stages = {"a": {"key": first.key, **more}}
        (tmp_path / "out" / "progress.json").write_text(json.dumps({"stages": stages}))

    record()
    STAGE.check(config)
    check_ahead([(step.name, step.config) for step, _ in waiting_steps(config)])
    record(seconds=1.0)
    with pytest.raises(
        RequestError, match=r"stages\.b: model\.path is '.*without weights"
    ) as error:
        STAGE.check(config)
    assert "a folder without a tokenizer" in str(error.value)
