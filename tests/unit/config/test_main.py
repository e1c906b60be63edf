"""The command: exit statuses, streams, and the file of a traceback."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from ray import __version__ as ray_version

from rlhf_ray import disk_space
from rlhf_ray import main as command
from rlhf_ray.config.errors import RequestError, RunFailed
from rlhf_ray.config.keys.choices import group_choices
from rlhf_ray.config.run import StageConfig
from rlhf_ray.config.setting import setting_of
from rlhf_ray.config.stages import (
    FIT_STAGES,
    SERVICE_STAGES,
    STAGE_NAMES,
    STAGES,
    StageKind,
)
from rlhf_ray.interrupts import CtrlC
from rlhf_ray.main import main
from rlhf_ray.stages import plan
from rlhf_ray.stages.stage import Stage
from rlhf_ray.stages.table import load_stage

pytestmark = pytest.mark.unit_slow


@pytest.fixture
def stage(monkeypatch, tmp_path):
    """Replace the function of the rl stage, in an empty folder."""
    monkeypatch.chdir(tmp_path)

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


@pytest.mark.parametrize("module", ["rlhf_ray", "rlhf_ray.main"])
def test_both_modules_are_the_command(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "num_step=3"],
        env={**os.environ, "PYTHONPATH": str(Path(command.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, "did you mean num_steps?" in done.stderr) == (2, True)


def test_versions(capsys):
    assert main(["--version"]) == 0
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert shown["ray"] == ray_version
    assert {"torch", "deepspeed", "transformers"} < shown.keys()


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


def test_a_traceback_that_cannot_be_written_is_shown_once(stage, capsys, tmp_path, monkeypatch):
    def run(_config):
        (tmp_path / "run" / "error.log").mkdir()
        try:
            raise OSError("the cause")
        except OSError as error:
            raise KeyError("surprise") from error

    def no_file(**_):
        raise PermissionError("no temporary files")

    monkeypatch.setattr(tempfile, "mkstemp", no_file)
    stage(run)
    assert main(["recipe=demo", f"output_dir={tmp_path}/run"]) == 1
    err = capsys.readouterr().err
    assert err.count("Traceback") == 1
    assert "the cause" in err
    assert err.startswith("rlhf_ray: failed: KeyError: 'surprise'\n")


def test_a_traceback_that_does_not_fit_the_folder_is_a_temporary_file(stage, capsys, tmp_path):
    def run(_config):
        (tmp_path / "run" / "error.log").mkdir()
        raise KeyError("surprise")

    stage(run)
    assert main(["recipe=demo", f"output_dir={tmp_path}/run"]) == 1
    lines = capsys.readouterr().err.splitlines()
    log = Path(lines[-1].rpartition(" ")[2])
    assert "Traceback" in log.read_text()
    log.unlink()
    assert len(lines) == 2


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded", "metrics.jsonl"),
        RunFailed("learner_0 failed: SafetensorError: I/O error: No space left on device"),
    ],
)
def test_a_full_disk_is_said_first(stage, capsys, tmp_path, monkeypatch, error):
    stage(_raise(error))
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: 0)
    assert main(["recipe=demo", f"output_dir={tmp_path}/run"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("rlhf_ray: failed: the disk of ")
    assert "mounted at" in lines[0]
    assert "is full" in lines[0]
    assert str(error) in lines[1]


@pytest.mark.parametrize("free", [0, 10**12])
def test_torchs_words_for_a_short_file_mean_a_full_disk_where_little_is_free(
    stage, capsys, tmp_path, monkeypatch, free
):
    words = "[enforce fail at inline_container.cc:672] . unexpected pos 4777344 vs 4777236"
    stage(_raise(RunFailed(f"learner_0 failed: RuntimeError: {words}")))
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: free)
    assert main(["recipe=demo", f"output_dir={tmp_path}/run"]) == 1
    assert ("is full" in capsys.readouterr().err) == (free == 0)


def test_a_deleted_folder_is_one_sentence_and_not_made_again(stage, capsys, tmp_path):
    def run(_config):
        shutil.rmtree(tmp_path / "run")
        raise FileNotFoundError(2, "No such file or directory", "tensorboard/events")

    stage(run)
    assert main(["recipe=demo", f"output_dir={tmp_path}/run"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"rlhf_ray: failed: the folder output_dir={tmp_path}/run was deleted")
    assert not (tmp_path / "run").exists()
    Path(err.split()[-1]).unlink()


@pytest.mark.parametrize("arguments", [["recipe=demo"], ["--cfg", "job"]])
def test_a_fault_before_the_start_is_one_message(arguments, capsys, monkeypatch):
    def fault(_):
        raise TypeError("our fault")

    monkeypatch.setattr(command, "load_config", fault)
    monkeypatch.setattr(command, "read_config", fault)
    assert main(arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "rlhf_ray: failed: TypeError: our fault"
    log = Path(lines[1].rpartition(" ")[2])
    assert len(lines) == 2
    assert "Traceback" in log.read_text()
    log.unlink()


def test_what_a_terminal_would_obey_is_escaped(stage, capsys):
    stage(_raise(RequestError("row \x1b[31m of \u202egpj.x\nsecond line")))
    assert main(["recipe=demo"]) == 2
    expected = "rlhf_ray: row \\x1b[31m of \\u202egpj.x\nsecond line\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["recipe=demo", "stage=plan"]])
def test_a_reader_that_leaves_is_no_error(arguments, tmp_path):
    """The pipe of `plan | head -1` when head has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_ray.main", *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        timeout=120,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_interrupted(stage, capsys):
    stage(_raise(KeyboardInterrupt()))
    assert main(["recipe=demo"]) == 130
    assert capsys.readouterr().err.splitlines() == [
        "rlhf_ray: no checkpoint was committed (checkpoint.every_steps=0 writes none); the "
        "same command starts again from step 0",
        "rlhf_ray: interrupted",
    ]


def test_a_signal_that_makes_a_check_fail_is_what_is_said(stage, capsys):
    """The check reads a process that the same Ctrl-C has ended."""
    handler = CtrlC()
    before = signal.signal(signal.SIGINT, handler)

    def run(config):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise RequestError("the model's template cannot be tried")

    stage(run)
    try:
        assert main(["recipe=demo"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
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
    rows = tmp_path.parent / f"{tmp_path.name}_rows.jsonl"
    columns = {
        "pretrain": {"text": "a"},
        "sft": {"prompt": "a", "answer": "b"},
        "reward_model": {"prompt": "a", "chosen": "b", "rejected": "c"},
    }
    rows.write_text(json.dumps(columns.get(stage, columns["reward_model"])) + "\n")
    texts = rows.with_suffix(".json")
    texts.write_text(json.dumps([columns["pretrain"]]))
    inputs = {
        **{name: [f"examples.path={rows}"] for name in FIT_STAGES},
        "prepare_data": [f"prepare.sources.a={{path:'{rows}',kind:text}}"],
        "pipeline": [f"pipeline.stages.a={{stage:pretrain,model.path:m,examples.path:'{texts}'}}"],
        "evaluate": ["evaluation.models.a=a/b"],
        "serve_reward": ["reward.model.path=a/b"],
        "compress": ["model.path=a/b", f"compress.python={sys.executable}"],
        "export": ["model.path=a/b", "export.licence=mit"],
    }
    arguments = ["recipe=demo", f"stage={stage}", "dry_run=true", *inputs.get(stage, [])]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    note = f"rlhf_ray: note: recipe=demo sets NUMBER keys that stage={stage} does not read"
    told = re.sub(r"\d+", "NUMBER", err).partition(", without")[0]
    shown = [
        "\nlearner" in out,
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
    assert told == ("" if STAGES[stage].kinds == (StageKind.RL,) else note)
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
    lines = [line for line in out.splitlines() if "=NAME" in line and line.startswith("  ")]
    starts = {line.index(line.split()[1]) for line in lines if "main" not in line}
    assert len(starts) == 1, "the choices are one column"


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
