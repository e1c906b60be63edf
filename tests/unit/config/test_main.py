"""The command: exit statuses, streams, and the file of a traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from rlhf_ray import main as command
from rlhf_ray.config.compose import group_choices
from rlhf_ray.config.errors import RequestError, RunFailed
from rlhf_ray.config.run import StageConfig
from rlhf_ray.config.setting import setting_of
from rlhf_ray.config.stages import SERVICE_STAGES, STAGE_NAMES, STAGES
from rlhf_ray.main import main
from rlhf_ray.stages import plan
from rlhf_ray.stages.stage import Stage
from rlhf_ray.stages.table import load_stage


@pytest.fixture
def stage(monkeypatch):
    """Replace the function of the rl stage."""

    def replace(run):
        stages = {"rl": Stage(name="rl", describe=lambda _: "", run=run)}
        monkeypatch.setattr(command, "load_stage", lambda name: stages[name])

    return replace


def _raise(error):
    def run(config):
        raise error

    return run


def test_the_stage_gets_the_configuration_and_gives_the_status(stage):
    seen = []
    stage(lambda config: seen.append(config.num_steps) or 0)
    assert main(["recipe=demo", "num_steps=5"]) == 0
    assert seen == [5]


def test_a_refused_request_is_one_message(stage, capsys):
    stage(_raise(RequestError("row 3 of x.jsonl is broken: fix it")))
    assert main(["recipe=demo"]) == 2
    assert capsys.readouterr().err == "rlhf_ray: row 3 of x.jsonl is broken: fix it\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RunFailed("learner 1, update, step 7: out of memory"), "learner 1, update, step 7"),
        (KeyError("surprise"), "KeyError: 'surprise'"),
    ],
)
def test_a_failure_names_the_file_with_the_traceback(stage, capsys, tmp_path, error, message):
    stage(_raise(error))
    assert main(["recipe=demo", f"output_dir={tmp_path}/run"]) == 1
    lines = capsys.readouterr().err.splitlines()
    log = tmp_path / "run" / "error.log"
    assert message in lines[0]
    assert lines[-1].endswith(str(log))
    assert "Traceback" in log.read_text()
    assert "Traceback" not in "".join(lines)


def test_a_traceback_that_cannot_be_written_is_shown(stage, capsys, tmp_path):
    (tmp_path / "run").write_text("a file, not a folder")
    stage(_raise(KeyError("surprise")))
    assert main(["recipe=demo", f"output_dir={tmp_path}/run"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupted(stage, capsys):
    stage(_raise(KeyboardInterrupt()))
    assert main(["recipe=demo"]) == 130
    assert capsys.readouterr().err == "rlhf_ray: interrupted\n"


@pytest.mark.parametrize("way", ["stage=plan", "dry_run=true"])
def test_plan_prints_and_starts_nothing(way, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["recipe=demo", way]) == 0
    out, err = capsys.readouterr()
    for expected in ("num_steps: 60", "samples per step", "learner", "builder", "total: 1.5 CPUs"):
        assert expected in out
    assert err == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_every_stage_has_a_plan(stage, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inputs = [
        "examples.path=a.jsonl",
        "prepare.sources.a={path:a.jsonl,kind:text}",
        "pipeline.stages.a={stage:pretrain,model.path:m,examples.path:a.jsonl}",
        "evaluation.models.a=a/b",
        *(["reward.model.path=a/b"] if stage == "serve_reward" else []),
        *(["model.path=a/b", "export.licence=mit"] if stage in ("compress", "export") else []),
    ]
    assert main(["recipe=demo", f"stage={stage}", "dry_run=true", *inputs]) == 0
    out, err = capsys.readouterr()
    shown = [
        "learner" in out,
        "# Sources" in out,
        "# Stages" in out,
        "# Service\n" in out,
        "# Chat\n" in out,
        "# Models\na: a/b" in out,
        "# Forms of a/b" in out,
        "# Export\na/b" in out,
    ]
    others = ("prepare_data", "pipeline", "chat", "evaluate", "compress", "export")
    assert shown == [
        stage not in (*others, *SERVICE_STAGES),
        stage == "prepare_data",
        stage == "pipeline",
        stage in SERVICE_STAGES,
        stage == "chat",
        stage == "evaluate",
        stage == "compress",
        stage == "export",
    ]
    assert err == ""
    assert list(tmp_path.iterdir()) == []


def test_cfg_job_prints_yaml_even_of_an_incomplete_configuration(capsys):
    assert main(["--cfg", "job", "num_steps=7"]) == 0
    out, err = capsys.readouterr()
    values = yaml.safe_load(out)
    assert (values["num_steps"], values["model"]["path"], err) == (7, "", "")


def test_help_lists_the_choices(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(choice in out for choices in group_choices().values() for choice in choices)


def test_options_may_stand_between_overrides(capsys):
    assert main(["recipe=demo", "--cfg", "job", "num_steps=7"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["num_steps"] == 7


def test_arguments_of_the_process_are_the_default(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["main", "--nope"])
    assert main() == 2
    assert "--nope" in capsys.readouterr().err


def test_every_stage_can_be_chosen_in_every_way():
    (field,) = [f for f in StageConfig.__dataclass_fields__.values() if f.name == "name"]
    rule = setting_of(field)
    assert rule is not None
    assert sorted(rule.choices) == sorted(STAGES) == group_choices()["stage"]


def test_every_stage_has_its_module():
    package = Path(command.__file__).parent.parent
    files = {
        name: package / (entry.module.replace(".", "/") + ".py") for name, entry in STAGES.items()
    }
    assert [name for name, file in files.items() if not file.exists()] == []


@pytest.mark.parametrize("name", STAGES)
def test_load_stage(name):
    assert load_stage(name).name == name
    assert load_stage("plan") is plan.STAGE
