"""A run of several stages: order, what is done again, the report. Fake stages, no cluster."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from rlhf_ray.config.errors import ConfigError, RequestError, RunFailed
from rlhf_ray.config.groups.pipeline import read_report
from rlhf_ray.config.load import load_config
from rlhf_ray.config.run import Config
from rlhf_ray.observe.figures import figure_problem
from rlhf_ray.stages import pipeline
from rlhf_ray.stages.plan import run as plan
from rlhf_ray.stages.stage import Stage
from rlhf_ray.stages.start import start_stage

pytestmark = pytest.mark.unit_slow

STAGES = {
    "base": {"stage": "pretrain", "model.path": "m", "examples.path": "x"},
    "tuned": {"stage": "sft", "model.path": "{base}/model", "examples.path": "x"},
}
# Its models and rows are not there.
UNCHECKED = dataclasses.replace(pipeline.STAGE, check=lambda _: None)
PIPELINE = "pipeline.stages={a: {stage: sft}}"
REPORT = {"before": "base:inner.loss", "after": "tuned:inner.loss"}


class FakeStages:
    """Stages that write a summary; `fails` is raised by the stage of that name.

    A call is the stage, its model, whether it begins anew, and its seed.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, bool, int]] = []
        self.replaces = False
        self.fails: dict[str, Exception] = {}
        self.looked_at: list[tuple[str, Config]] = []

    def load_stage(self, name: str) -> Stage:
        def run(config) -> int:
            folder = Path(config.output_dir)
            self.calls.append((name, config.model.path, self.replaces, config.seed))
            # What a later run reads in config.yaml: that of the first start would begin anew, too.
            assert config.resume == "auto"
            if name in self.fails:
                raise self.fails[name]
            folder.mkdir(parents=True, exist_ok=True)
            summary = {"inner": {"loss": float(len(self.calls))}}
            (folder / "summary.json").write_text(json.dumps(summary))
            return 0

        return Stage(name=name, describe=lambda _: "", run=run)

    def start_stage(self, stage: Stage, config: Config, *, replaces: bool) -> int:
        self.replaces = replaces
        return start_stage(stage, config, replaces=replaces)


@pytest.fixture
def stages(monkeypatch) -> FakeStages:
    fakes = FakeStages()
    monkeypatch.setattr(pipeline, "load_stage", fakes.load_stage)
    monkeypatch.setattr(pipeline, "start_stage", fakes.start_stage)
    monkeypatch.setattr(pipeline, "_one_cluster", lambda *_, **__: nullcontext())
    monkeypatch.setattr(pipeline, "check_ahead", fakes.looked_at.extend)
    return fakes


@pytest.fixture
def config(tmp_path):
    def load(*overrides: str, stages=None):
        loaded = load_config(
            [
                "stage=pipeline",
                PIPELINE,
                f"output_dir={tmp_path}/out",
                "seed=3",
                *overrides,
            ]
        )
        loaded.pipeline.stages = stages or STAGES
        loaded.pipeline.report = REPORT if stages is None else {}
        return loaded

    return load


def test_stages_run_in_order_and_are_reported(stages, config, tmp_path, capsys):
    assert pipeline.run(config()) == 0
    assert stages.calls == [
        ("pretrain", "m", True, 3),
        ("sft", f"{tmp_path}/out/base/model", True, 3),
    ]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["before"], summary["after"]) == (1.0, 2.0)
    assert set(summary["seconds"]) == {"base", "tuned"}
    assert (tmp_path / "out" / "summary.txt").read_text() in capsys.readouterr().out


def test_what_is_finished_is_not_done_again(stages, config, capsys):
    start_stage(UNCHECKED, config())
    assert [name for name, _ in stages.looked_at] == ["base", "tuned"]
    start_stage(UNCHECKED, config())
    assert len(stages.calls) == len(stages.looked_at) == 2
    assert capsys.readouterr().out.count("finished before") == 2


def test_an_interrupted_stage_goes_on(stages, config):
    stages.fails["sft"] = RunFailed("no memory")
    with pytest.raises(RunFailed, match="pipeline stage tuned: no memory"):
        pipeline.run(config())
    stages.fails.clear()
    pipeline.run(config())
    assert [(name, is_new) for name, _, is_new, _ in stages.calls] == [
        ("pretrain", True),
        ("sft", True),
        ("sft", False),
    ]


def test_a_change_does_a_stage_and_all_after_it_anew(stages, config):
    pipeline.run(config())
    changed = {name: {**values, "fit.max_steps": 9} for name, values in STAGES.items()}
    pipeline.run(config(stages={"base": STAGES["base"], "tuned": changed["tuned"]}))
    assert [call[0] for call in stages.calls[2:]] == ["sft"]
    pipeline.run(config(stages={"base": changed["base"], "tuned": changed["tuned"]}))
    assert [(call[0], call[2]) for call in stages.calls[3:]] == [
        ("pretrain", True),
        ("sft", True),
    ]


def test_another_seed_and_resume_never_begin_anew(stages, config):
    pipeline.run(config())
    pipeline.run(config("seed=4"))
    pipeline.run(config("seed=4", "resume=never"))
    assert [call[0] for call in stages.calls] == ["pretrain", "sft"] * 3


def test_wrong_stages_are_refused_before_any_starts(stages, config):
    wrong = {
        "base": {**STAGES["base"], "fit.max_steps": 0},
        "tuned": {"stage": "sft", "model.path": "m"},
    }
    with pytest.raises(ConfigError) as error:
        pipeline.run(config(stages=wrong))
    message = str(error.value)
    assert "pipeline.stages.base: " in message
    assert "fit.max_steps=0" in message
    assert "pipeline.stages.tuned: " in message
    assert "examples.path" in message
    assert stages.calls == []


def test_the_input_of_a_stage_is_wrong(stages, config):
    stages.fails["pretrain"] = RequestError("x: there is no such file")
    with pytest.raises(RequestError, match="pipeline stage base: x: there is no such file"):
        pipeline.run(config())


def test_a_figure_that_is_not_there(stages, config):
    asked = config()
    asked.pipeline.report = {"after": "tuned:inner.accuracy"}
    words = r"no number at inner\.accuracy.*: there is no inner\.accuracy; there is: loss"
    with pytest.raises(RunFailed, match=words):
        pipeline.run(asked)


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        ("base:loss_lst", "there is no loss_lst; did you mean loss_last? There is: num_steps, "),
        ("base:loss_last.x", "loss_last is a number, and x leads to nothing"),
        ("data:rows", "stage=prepare_data leaves no figures; take one of a stage that does: pre"),
        ("rl:parts_first.anything", None),
        ("rl:kl_lst", "did you mean kl_last?"),
        ("eval:models.sft.sampled.win_rate.mean", None),
        ("eval:model.sft", "there is no model; did you mean models? There is: models, prompts"),
        ("eval:prompts.num_prompts", None),
        ("eval:models.nft.greedy", "there is no models.nft; did you mean sft? There is: sft"),
        ("eval:models.sft", "more names have to follow: num_prompts, failed_prompts, sampled"),
        ("eval:models.sft.greedy.reward.mean", "there is no models.sft.greedy"),
    ],
)
def test_a_figure_that_no_stage_makes_is_refused_before_any_starts(tmp_path, figure, words):
    prompts = "rlhf_ray.data.builtin:arithmetic"
    rows = {"model.path": "m", "examples.path": prompts}
    scored = {
        "data.path": prompts,
        "data.answer_column": "answer",
        "reward.functions": ["exact_match"],
    }
    measured = {"evaluation.samples": 2, "evaluation.greedy": False}
    config = load_config([*("stage=pipeline", f"output_dir={tmp_path}/out"), PIPELINE])
    config.pipeline.stages = {
        "data": {"stage": "prepare_data", "prepare.sources.a": {"path": prompts, "kind": "prompt"}},
        "base": {"stage": "sft", **rows},
        "rl": {"stage": "rl", "model.path": "m", **scored, "generation.kv_cache_gib": 1},
        "eval": {
            "stage": "evaluate",
            "evaluation.models": {"sft": "{base}/model"},
            "generation.kv_cache_gib": 1,
            **scored,
            **measured,
        },
    }
    config.pipeline.report = {"figure": figure}
    if words is None:
        pipeline.STAGE.check(config)
        return
    with pytest.raises(RequestError) as caught:
        pipeline.STAGE.check(config)
    assert str(caught.value).startswith(f"pipeline.report.figure={figure}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "recipe",
    ["pipeline_demo", "pipeline_smollm2", "product", "sentiment", "stories", "translation"],
)
def test_the_figures_of_recipes_may_be_there(recipe):
    config = load_config([f"recipe={recipe}"])
    parts = {step.name: step.config for step in pipeline.read_steps(config)}
    found = read_report(config.pipeline)
    assert [figure_problem(parts[figure.stage], figure.path) for figure in found] == (
        [None] * len(found)
    )
    assert found


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "null", "{}", '{"stages": []}', '{"stages": {"base": 3}}', "[" * 100_000),
        '{"stages": {"base": {"key": "a", "seconds": "x"}}}',
    ],
)
def test_a_broken_record_is_named(text, stages, config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "progress.json").write_text(text)
    with pytest.raises(RequestError, match=r"progress\.json cannot be read"):
        pipeline.run(config())
    assert stages.calls == []


def test_a_refused_pipeline_leaves_the_earlier_run_as_it_was(stages, config, tmp_path, monkeypatch):
    def refuse(_parts):
        raise RequestError("the model of a later stage cannot do it")

    monkeypatch.setattr(pipeline, "check_ahead", refuse)
    with pytest.raises(RequestError, match="a later stage"):
        start_stage(UNCHECKED, config())
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    earlier = {name: f"{name} of before" for name in ("config.yaml", "error.log", "end.json")}
    for name, text in earlier.items():
        (tmp_path / "out" / name).write_text(text)
    with pytest.raises(RequestError, match="a later stage"):
        start_stage(UNCHECKED, config())
    assert {name: (tmp_path / "out" / name).read_text() for name in earlier} == earlier
    assert stages.calls == []


def test_the_plan_names_the_stages(config, tmp_path, capsys):
    rows = {"base": {"text": "a"}, "tuned": {"prompt": "a", "answer": "b"}}
    stages = {}
    for name, row in rows.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps(row) + "\n")
        stages[name] = {**STAGES[name], "examples.path": str(file)}
    assert plan(config(stages=stages)) == 0
    assert f"tuned  stage=sft {tmp_path}/out/tuned" in capsys.readouterr().out


def test_the_plan_says_what_a_stage_has_other_than_its_recipe(config):
    told = ["ppo.algorithm.kl_coefficient=0.1", "ppo.num_steps=7", "sft.training=gpu"]
    asked = load_config(["recipe=pipeline_demo", *(f"pipeline.stages.{one}" for one in told)])
    lines = [line.strip() for line in pipeline.STAGE.describe(asked).splitlines()]
    assert lines[-1] == "other than the recipe: num_steps=7, algorithm.kl_coefficient=0.1"
    assert lines.count("as in the recipe") == 4
    assert any("training.num_gpus=1" in line for line in lines)
    own = pipeline.STAGE.describe(config())
    assert own.count("of no recipe: samples per optimiser step") == 2


def test_the_plan_of_missing_rows_is_shown_and_refused(config, capsys):
    with pytest.raises(RequestError, match=r"pipeline\.stages\.base: examples\.path is 'x'"):
        plan(config(stages=STAGES))
    assert "tuned  stage=sft" in capsys.readouterr().out


def test_a_pipeline_that_is_done_starts_no_cluster(stages, config, monkeypatch, capsys):
    pipeline.run(config())

    def refuse(**_):
        raise AssertionError("a cluster was started")

    monkeypatch.setattr(pipeline, "_one_cluster", refuse)
    assert pipeline.run(config()) == 0
    assert capsys.readouterr().out.count("finished before") == 2
