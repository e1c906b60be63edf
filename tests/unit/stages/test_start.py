"""The output folder around a stage: one run at a time, one stage's output, nothing done twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rlhf_ray.config.errors import RequestError, RunFailed
from rlhf_ray.config.load import load_config
from rlhf_ray.interrupts import Interrupted
from rlhf_ray.run_folder.lock import LOCK, folder_lock
from rlhf_ray.stages.stage import FolderUse, Stage
from rlhf_ray.stages.start import start_stage

pytestmark = pytest.mark.unit_slow

TRAINING = ("rl", "sft", "reward_model", "preference", "pretrain")
HELD = (*TRAINING, "evaluate", "export", "compress", "serve", "pipeline")


class Trainer:
    """A stage that writes what training writes; `fails` is raised in the middle."""

    def __init__(self, *, checkpoint: int | None = None) -> None:
        self.runs = 0
        self.fails: BaseException | None = None
        self.checkpoint = checkpoint
        self.seen: list[list[str]] = []

    def run(self, config) -> int:
        self.runs += 1
        folder = Path(config.output_dir)
        self.seen.append(sorted(path.name for path in folder.iterdir()))
        (folder / "config.yaml").write_text(f"stage:\n  name: {config.stage.name}\n")
        if isinstance(self.fails, RequestError):
            raise self.fails
        (folder / "metrics.jsonl").write_text(f'{{"step": {self.runs}}}\n')
        if self.checkpoint:
            step = folder / "checkpoints" / f"step_{self.checkpoint:06d}"
            step.mkdir(parents=True, exist_ok=True)
            (step / "run.json").write_text("{}")
            (step / "COMMITTED").touch()
        if self.fails:
            raise self.fails
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model" / "weights").write_text(f"model {self.runs}")
        return 0

    def stage(self, name: str) -> Stage:
        return Stage(name=name, describe=lambda _: "", run=self.run)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def config(folder, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')

    def load(stage: str = "rl", *overrides: str):
        needs = {
            "rl": ["recipe=demo"],
            "evaluate": ["recipe=demo", "evaluation.models.a=a/b"],
            "export": ["model.path=a/b", "export.licence=mit"],
            "compress": ["recipe=demo", "model.path=a/b", f"examples.eval_path={tmp_path}/r.jsonl"],
            "serve": ["model.path=a/b"],
            "pipeline": ["recipe=pipeline_demo"],
        }.get(stage, ["model.path=a/b", f"examples.path={tmp_path}/rows.jsonl"])
        return load_config([*needs, f"stage={stage}", f"output_dir={folder}", *overrides])

    return load


@pytest.mark.parametrize("name", [*TRAINING, "evaluate", "compress", "pipeline"])
def test_the_end_is_told_in_the_folder_and_forgotten_when_the_next_run_begins(
    name, config, folder, capsys
):
    trainer = Trainer()
    trainer.fails = RunFailed("learner_0 died")
    with pytest.raises(RunFailed):
        start_stage(trainer.stage(name), config(name))
    assert json.loads((folder / "end.json").read_text())["cause"] == "failed: RunFailed"
    trainer.fails = None
    assert start_stage(trainer.stage(name), config(name)) == 0
    assert "end.json" not in trainer.seen[1]
    assert json.loads((folder / "end.json").read_text())["cause"] == "done"
    assert capsys.readouterr().out.endswith(f"Report: {folder / 'report.html'}\n")
    assert "<!DOCTYPE html>" in (folder / "report.html").read_text()


@pytest.mark.parametrize("name", HELD)
def test_a_second_run_in_the_folder_is_refused(name, config, folder):
    trainer = Trainer()
    folder.mkdir()
    with folder_lock(folder / LOCK, folder=folder) as lock:
        lock.write("rl")
        with pytest.raises(RequestError, match="another run is writing there: stage=rl, process"):
            start_stage(trainer.stage(name), config(name))
    assert trainer.runs == 0


@pytest.mark.parametrize("there", ["sft", "rl", "evaluate"])
@pytest.mark.parametrize("here", HELD)
def test_the_output_of_another_stage_is_not_overwritten(here, there, config, folder):
    if here == there:
        return
    assert start_stage(Trainer().stage(there), config(there)) == 0
    trainer = Trainer()
    with pytest.raises(RequestError, match=f"holds the output of stage={there}") as refused:
        start_stage(trainer.stage(here), config(here))
    assert "metrics.jsonl" in str(refused.value)
    assert "name another output_dir" in str(refused.value)
    assert trainer.runs == 0
    assert (folder / "model" / "weights").read_text() == "model 1"
    # The refused attempt has not taken the folder over.
    with pytest.raises(RequestError, match=f"holds the output of stage={there}"):
        start_stage(trainer.stage(here), config(here))


def test_a_folder_of_a_release_without_lock_files_is_known_by_its_configuration(config, folder):
    start_stage(Trainer().stage("sft"), config("sft"))
    (folder / LOCK).unlink()
    with pytest.raises(RequestError, match="holds the output of stage=sft"):
        start_stage(Trainer().stage("rl"), config())


def test_a_folder_where_a_stage_failed_at_once_is_free(config, folder):
    trainer = Trainer()
    trainer.fails = RequestError("the data is wrong")
    with pytest.raises(RequestError, match="the data is wrong"):
        start_stage(trainer.stage("sft"), config("sft"))
    assert start_stage(Trainer().stage("rl"), config()) == 0


def test_a_refused_request_leaves_no_folder(config, folder, tmp_path):
    def run(_config) -> int:
        raise RequestError("no")

    with pytest.raises(RequestError):
        start_stage(Stage(name="rl", describe=lambda _: "", run=run), config())
    assert not folder.exists()


@pytest.mark.parametrize("name", TRAINING)
def test_the_same_command_after_the_end_is_done(name, config, folder, capsys):
    trainer = Trainer()
    start_stage(trainer.stage(name), config(name))
    capsys.readouterr()
    assert start_stage(trainer.stage(name), config(name)) == 0
    assert trainer.runs == 1
    out = capsys.readouterr().out
    assert out.startswith(f"done: this run of stage={name} ended on ")
    assert out.endswith(f"Result: {folder}/model\n")


def test_fewer_steps_than_done_are_done(config, capsys):
    trainer = Trainer(checkpoint=60)
    start_stage(trainer.stage("rl"), config("rl", "num_steps=60"))
    start_stage(trainer.stage("rl"), config("rl", "num_steps=20", "observe.progress=off"))
    assert trainer.runs == 1
    assert "num_steps=60" in capsys.readouterr().out


def test_fewer_epochs_than_done_are_done(config):
    trainer = Trainer(checkpoint=60)
    start_stage(trainer.stage("sft"), config("sft", "fit.num_epochs=3"))
    start_stage(trainer.stage("sft"), config("sft", "fit.num_epochs=2"))
    start_stage(trainer.stage("sft"), config("sft", "fit.num_epochs=3", "fit.max_steps=5"))
    assert trainer.runs == 1


def test_more_steps_go_on_from_the_checkpoint(config, folder):
    trainer = Trainer(checkpoint=60)
    start_stage(trainer.stage("rl"), config("rl", "num_steps=60"))
    start_stage(trainer.stage("rl"), config("rl", "num_steps=80"))
    assert trainer.runs == 2
    assert not (folder / "earlier").exists()
    assert {"checkpoints", "metrics.jsonl"} <= set(trainer.seen[1])
    assert json.loads((folder / "finished.json").read_text())["settings"]["num_steps"] == 80


def test_more_steps_without_a_checkpoint_are_refused(config):
    trainer = Trainer()
    start_stage(trainer.stage("rl"), config("rl", "num_steps=60"))
    with pytest.raises(RequestError, match="no checkpoint to go on from") as refused:
        start_stage(trainer.stage("rl"), config("rl", "num_steps=80"))
    assert "resume=never" in str(refused.value)
    assert trainer.runs == 1


@pytest.mark.parametrize("checkpoint", [None, 60])
def test_another_run_does_not_replace_a_finished_one(checkpoint, config, folder):
    trainer = Trainer(checkpoint=checkpoint)
    start_stage(trainer.stage("rl"), config())
    with pytest.raises(RequestError, match=r"training\.learning_rate=.* there, 0\.5 here"):
        start_stage(trainer.stage("rl"), config("rl", "training.learning_rate=0.5"))
    assert trainer.runs == 1
    assert (folder / "model" / "weights").read_text() == "model 1"


def test_changed_rows_are_another_run(config, tmp_path):
    trainer = Trainer()
    start_stage(trainer.stage("sft"), config("sft"))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "other"}\n')
    with pytest.raises(RequestError, match=r"rows\.jsonl has changed since"):
        start_stage(trainer.stage("sft"), config("sft"))


@pytest.mark.parametrize("damage", ["missing", "no file", "cut", "one more"])
def test_a_damaged_model_is_made_again(damage, config, folder):
    trainer = Trainer(checkpoint=60)
    start_stage(trainer.stage("rl"), config())
    weights = folder / "model" / "weights"
    if damage == "missing":
        shutil.rmtree(folder / "model")
    elif damage == "no file":
        weights.unlink()
    elif damage == "cut":
        weights.write_text("mod")
    else:
        (folder / "model" / "more").touch()
    start_stage(trainer.stage("rl"), config())
    assert trainer.runs == 2
    assert not (folder / "earlier").exists(), "it goes on from its checkpoint"


def test_a_run_that_begins_again_moves_the_earlier_output_aside(config, folder, capsys):
    trainer = Trainer(checkpoint=60)
    start_stage(trainer.stage("rl"), config())
    (folder / "notes.txt").write_text("mine")
    (folder / "error.log").write_text("old")
    start_stage(trainer.stage("rl"), config("rl", "resume=never", "training.learning_rate=0.5"))
    assert trainer.runs == 2
    assert trainer.seen[1] == [LOCK, "earlier", "notes.txt"]
    (aside,) = (folder / "earlier").iterdir()
    assert str(aside) in capsys.readouterr().out
    assert (aside / "model" / "weights").read_text() == "model 1"
    assert (aside / "checkpoints" / "step_000060" / "COMMITTED").exists()
    assert (folder / "model" / "weights").read_text() == "model 2"
    start_stage(trainer.stage("rl"), config("rl", "resume=never"))
    assert len(list((folder / "earlier").iterdir())) == 2


def test_a_failed_run_without_a_checkpoint_begins_again(config, folder):
    trainer = Trainer()
    trainer.fails = RunFailed("out of memory")
    with pytest.raises(RunFailed):
        start_stage(trainer.stage("rl"), config())
    (folder / "error.log").write_text("old")
    trainer.fails = None
    start_stage(trainer.stage("rl"), config("rl", "training.learning_rate=0.5"))
    assert trainer.seen[1] == [LOCK, "earlier"]
    assert not (folder / "error.log").exists()


def test_a_killed_run_goes_on_in_its_folder(config, folder):
    trainer = Trainer(checkpoint=20)
    trainer.fails = RunFailed("killed")
    with pytest.raises(RunFailed):
        start_stage(trainer.stage("rl"), config())
    (folder / "error.log").write_text("old")
    trainer.fails = None
    start_stage(trainer.stage("rl"), config())
    assert {"checkpoints", "metrics.jsonl"} <= set(trainer.seen[1])
    assert "error.log" not in trainer.seen[1]
    path = folder / "checkpoints" / "step_000020"
    (folder / "finished.json").unlink()
    start_stage(trainer.stage("rl"), config("rl", f"resume={path}"))
    assert not (folder / "earlier").exists()


def test_a_checkpoint_of_another_folder_does_not_mix_two_runs(config, folder, tmp_path):
    trainer = Trainer(checkpoint=20)
    start_stage(trainer.stage("rl"), config("rl", f"output_dir={tmp_path}/other"))
    start_stage(trainer.stage("rl"), config())
    path = tmp_path / "other" / "checkpoints" / "step_000020"
    start_stage(trainer.stage("rl"), config("rl", f"resume={path}"))
    assert "metrics.jsonl" not in trainer.seen[2]
    assert len(list((folder / "earlier").iterdir())) == 1


@pytest.mark.parametrize("restart", ["resume=never", "num_steps=90"])
def test_a_request_that_is_refused_late_changes_nothing(restart, config, folder):
    trainer = Trainer(checkpoint=60)
    start_stage(trainer.stage("rl"), config())
    (folder / "config.yaml").write_text("stage:\n  name: rl\n# the run's own\n")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != LOCK}
    trainer.fails = RequestError("the warm-up is too long")
    with pytest.raises(RequestError, match="warm-up"):
        start_stage(trainer.stage("rl"), config("rl", restart))
    after = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != LOCK}
    assert after == before
    assert not (folder / "earlier").exists()


def test_a_part_of_a_larger_run_moves_anything_aside(config, folder):
    """Also checkpoints, from which resume=auto would go on."""
    start_stage(Trainer(checkpoint=7).stage("sft"), config("sft"))
    trainer = Trainer()
    start_stage(trainer.stage("rl"), config("rl"), replaces=True)
    (aside,) = (folder / "earlier").iterdir()
    assert (aside / "model").is_dir()
    assert (aside / "checkpoints" / "step_000007").is_dir()
    assert "checkpoints" not in trainer.seen[0]


@pytest.mark.parametrize("fails", [False, True])
def test_a_folder_that_is_deleted_during_the_run_is_said(fails, config, folder):
    def run(_config) -> int:
        shutil.rmtree(folder)
        if fails:
            raise FileNotFoundError(2, "No such file", "tensorboard/events")
        return 0

    with pytest.raises(RunFailed, match="was deleted, moved or replaced while the run"):
        start_stage(Stage(name="rl", describe=lambda _: "", run=run), config())
    assert not folder.exists()


@pytest.mark.parametrize("use", [FolderUse.NONE, FolderUse.REPLACED])
def test_other_stages_make_no_lock(use, config, folder):
    stage = Stage(name="chat", describe=lambda _: "", run=lambda _: 0, folder=use)
    assert start_stage(stage, config()) == 0
    assert not folder.exists()


def test_a_stage_that_replaces_its_folder_says_itself_what_is_wrong_with_it(config, folder):
    """Such as a file in its place; a stale traceback in an earlier result is removed."""
    stage = Stage(
        name="prepare_data", describe=lambda _: "", run=lambda _: 0, folder=FolderUse.REPLACED
    )
    folder.mkdir()
    (folder / "error.log").touch()
    assert start_stage(stage, config()) == 0
    assert list(folder.iterdir()) == []
    folder.rmdir()
    folder.touch()
    assert start_stage(stage, config()) == 0


def test_a_stage_that_replaces_its_folder_needs_a_place_that_can_be_written(config, tmp_path):
    (tmp_path / "file").touch()
    stage = Stage(
        name="prepare_data", describe=lambda _: "", run=lambda _: 0, folder=FolderUse.REPLACED
    )
    with pytest.raises(RequestError, match="file is a file"):
        start_stage(stage, config("rl", f"output_dir={tmp_path}/file/out"))


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("end", [KeyboardInterrupt(), Interrupted(15)])
def test_an_interrupted_run_says_where_it_goes_on(name, end, config, folder, capsys):
    trainer = Trainer(checkpoint=20)
    trainer.fails = end
    with pytest.raises(type(end)):
        start_stage(trainer.stage(name), config(name))
    newest = folder / "checkpoints" / "step_000020"
    assert capsys.readouterr().err == (
        f"rlhf_ray: the last committed checkpoint is {newest}; the same command goes on from it\n"
    )


def test_an_interrupted_run_that_would_start_again_says_so(config, capsys):
    trainer = Trainer()
    trainer.fails = KeyboardInterrupt()
    for every, words in ((0, "every_steps=0 writes none"), (5, "every_steps=5")):
        with pytest.raises(KeyboardInterrupt):
            start_stage(trainer.stage("rl"), config("rl", f"checkpoint.every_steps={every}"))
        assert capsys.readouterr().err == (
            f"rlhf_ray: no checkpoint was committed (checkpoint.{words}); the same command starts "
            f"again from step 0\n"
        )


def test_an_interrupted_run_without_resume_names_the_way_on(config, capsys):
    trainer = Trainer(checkpoint=20)
    trainer.fails = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        start_stage(trainer.stage("rl"), config("rl", "resume=never"))
    err = capsys.readouterr().err
    assert "resume=auto goes on from it, and this command (resume=never) starts again from" in err


def test_damaged_metrics_are_found_before_the_run_goes_on(config, folder):
    trainer = Trainer(checkpoint=60)
    trainer.fails = RunFailed("no memory")
    with pytest.raises(RunFailed):
        start_stage(trainer.stage("rl"), config())
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RequestError, match="line 2, holds no metrics"):
        start_stage(trainer.stage("rl"), config())
    assert trainer.runs == 1
    assert (folder / "end.json").exists(), "the earlier run's record stays"


@pytest.mark.parametrize("is_of_another_stage", [False, True])
def test_held_out_answers_of_an_earlier_run_are_moved_aside(is_of_another_stage, config, folder):
    trainer = Trainer()
    start_stage(trainer.stage("rl"), config())
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "step_000009.jsonl").write_text("{}\n")
    if is_of_another_stage:
        (folder / "evaluation" / "config.yaml").touch()
    start_stage(trainer.stage("rl"), config("rl", "resume=never"))
    assert (folder / "evaluation").exists() is is_of_another_stage
