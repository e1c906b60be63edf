"""Every stage that resumes: what it refuses before a worker starts, and what it lists."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from rlhf_ray.checkpoint_files.facts import DEEPSPEED, SLICES, RoleLayout
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.load import load_config
from rlhf_ray.config.reward_entries import read_functions
from rlhf_ray.config.rules.rule import trained_roles
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import FIT_STAGES
from rlhf_ray.driver.checkpoints import Checkpoints, StepCheckpoints
from rlhf_ray.driver.resume_choice import Resume
from rlhf_ray.main import main
from rlhf_ray.stages.fit import run as fit_run
from rlhf_ray.stages.fit.inputs import fit_identity
from rlhf_ray.stages.resume import FIT_PARTS, RL_PARTS, resume_of_fit, run_settings
from rlhf_ray.stages.rl import run as rl_run
from rlhf_ray.stages.rl.inputs import check_request
from rlhf_ray.testing.fake_waiter import InProcessWaiter
from rlhf_ray.testing.tiny import tiny_random
from tests.unit.driver.checkpoint_fakes import WritingRanks

pytestmark = pytest.mark.unit_slow

STAGES = ("rl", *FIT_STAGES)
TIME = "2026-01-31T12:00:00"
REWARD = "def score(sample):\n    return 1.0\n"


class Run:
    """The command of one stage, and a checkpoint that its run has written.

    The files of the ranks are texts: what is looked at comes before any rank reads them.
    """

    def __init__(self, stage: str, folder: Path) -> None:
        self.stage, self.folder = stage, folder
        self.output = folder / "output"
        (folder / "rows.jsonl").write_text(
            '{"prompt": "a", "answer": "b", "text": "c", "chosen": "b", "rejected": "d"}\n'
        )
        (folder / "reward.py").write_text(REWARD)
        rows = folder / "rows.jsonl"
        of_stage = [f"examples.path={rows}", "model.path=builtin:arithmetic"]
        if stage == "rl":
            of_stage = ["recipe=demo", f"reward.functions=['{folder / 'reward.py'}:score']"]
        if stage == "pretrain":
            of_stage.append("model.random_weights=true")
        self.arguments = [f"stage={stage}", f"output_dir={self.output}", *of_stage]

    def config(self, *changes: str) -> Config:
        return load_config([*self.arguments, *changes])

    def save(
        self,
        *changes: str,
        step: int = 2,
        without: str = "",
        state: dict | None = None,
        format: str = SLICES,
    ) -> Path:
        # A run keeps the time at which it first rendered a template; so have all its checkpoints.
        time = [f"model.template_time={TIME}"] if self.stage == "rl" else []
        config = self.config("resume=never", *time, *changes)
        if self.stage == "rl":
            settings, parts = check_request(config).settings, RL_PARTS
        else:
            settings, parts = run_settings(config, fit_identity(config), code={}), FIT_PARTS
        roles = {
            "critic" if group == "critic" else "learner": WritingRanks(
                layout=RoleLayout(
                    num_ranks=role.num_ranks, zero_stage=role.zero_stage, dtype=role.dtype
                ),
                format=format,
            )
            for group, role in trained_roles(config)
        }
        checkpoints = StepCheckpoints(
            Checkpoints(self.output, keep_last=9),
            roles=roles,
            waiter=InProcessWaiter(),
            every_steps=1,
            timeout_s=1.0,
            identity=settings.identity,
            settings=settings.in_checkpoint(),
        )
        values = {name: {} for name in parts if name != without}
        checkpoints.save(step, {**values, **(state or {})})
        return self.output / "checkpoints" / f"step_{step:06d}"

    def resume(self, *changes: str) -> Resume:
        config = self.config(*changes)
        if self.stage == "rl":
            found = check_request(config).resume_from
        else:
            found = resume_of_fit(config, run_settings(config, fit_identity(config), code={}))
        assert found is not None
        return found

    def refused(self, capsys: pytest.CaptureFixture[str], *changes: str) -> str:
        """The one message of a command that must end with status 2."""
        capsys.readouterr()
        assert main([*self.arguments, *changes]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("rlhf_ray: ")
        return lines[0]


@pytest.fixture(params=STAGES)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    return Run(request.param, tmp_path)


def test_the_same_command_goes_on_without_a_word(run: Run):
    folder = run.save()
    found = run.resume()
    assert found.folder == folder
    assert found.notes == ()


def test_a_run_that_is_shorter_than_its_checkpoint_is_refused(run: Run, capsys):
    folder = run.save(step=22)
    key = "num_steps" if run.stage == "rl" else "fit.max_steps"
    assert run.resume(f"{key}=22", "training.warmup_steps=0").folder == folder
    message = run.refused(capsys, f"{key}=4", "training.warmup_steps=0")
    assert f"the checkpoint {folder} has 22 steps, and {key} is 4: no step is left" in message
    assert "resume=never" in message
    assert [path.name for path in run.output.iterdir() if path.name != ".lock"] == ["checkpoints"]


@pytest.mark.parametrize("stage", FIT_STAGES)
def test_so_is_one_whose_rows_give_fewer_steps(stage: str, tmp_path: Path, capsys):
    run = Run(stage, tmp_path)
    run.arguments += ["training.warmup_steps=0", "examples.eval_share=0", "fit.num_epochs=3"]
    run.save(step=22)
    assert main(run.arguments) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "has 22 steps, and the length of fit.num_epochs=3 over these rows is 1: no" in message


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_a_model_that_was_moved_goes_on_and_another_does_not(stage: str, tmp_path: Path, capsys):
    run = Run(stage, tmp_path)
    for name in ("old", "new", "other"):
        tiny_random(tmp_path / name, vocab_size=300 if name == "other" else 320)
    folder = run.save(f"model.path={tmp_path}/old")
    found = run.resume(f"model.path={tmp_path}/new")
    assert found.folder == folder
    assert f'model.path: "{tmp_path}/old" -> "{tmp_path}/new"' in found.notes[0]
    message = run.refused(capsys, f"model.path={tmp_path}/other")
    assert (
        f"model.path='{tmp_path}/old' there, '{tmp_path}/other' here (other content of" in message
    )


def test_changed_settings_are_listed(run: Run):
    run.save()
    found = run.resume("training.learning_rate=0.125", "deadlines.update_s=77")
    (note,) = found.notes
    assert note.startswith("changed since the checkpoint: ")
    assert "training.learning_rate: " in note
    assert " -> 0.125" in note
    assert "deadlines.update_s: 1200.0 -> 77.0" in note


@pytest.mark.parametrize(
    "change",
    ["training.zero_stage=3", "training.dtype=bfloat16", "training.num_ranks=2"],
)
def test_another_layout_is_found_before_the_start(run: Run, capsys, change):
    """A checkpoint of a release whose files fit one layout alone."""
    run.save(format=DEEPSPEED)
    name, _, value = change.removeprefix("training.").partition("=")
    message = run.refused(capsys, change)
    assert f"and this run has {name}={value}" in message


def test_another_layout_goes_on_and_is_listed(run: Run):
    run.save()
    found = run.resume("training.num_ranks=2", "training.zero_stage=3")
    settings, layout = found.notes
    assert "training.num_ranks: 1 -> 2" in settings
    assert "training.zero_stage: 0 -> 3" in settings
    assert layout.startswith(
        "learner: saved by 1 rank at zero_stage=0, resumed on 2 ranks at zero_stage=3"
    )
    assert "ranks that were not there start their random generators from the seed" in layout


def test_another_number_format_is_refused(run: Run, capsys):
    run.save()
    message = run.refused(capsys, "training.dtype=bfloat16")
    assert "was written with dtype=float32, and this run has dtype=bfloat16" in message


def test_more_ranks_than_samples_are_refused_with_numbers(run: Run, capsys):
    run.save()
    message = run.refused(capsys, "training.num_ranks=1000")
    assert "training.num_ranks=1000: an optimiser step has only" in message


def test_another_run_is_refused(run: Run, capsys):
    run.save()
    assert "seed=0 there, 5 here" in run.refused(capsys, "seed=5")


def test_a_damaged_only_checkpoint_is_refused(run: Run, capsys):
    folder = run.save()
    (folder / "run.json").write_text("{")
    message = run.refused(capsys)
    assert f"the checkpoint {folder} is damaged: run.json has 1 bytes" in message
    assert "resume=never starts from step 0" in message


def test_a_missing_part_of_the_state_is_refused(run: Run, capsys):
    run.save(without="pipeline" if run.stage == "rl" else "steps")
    assert "run.json has no " in run.refused(capsys)


def test_a_long_name_is_refused(run: Run, capsys):
    assert "longer than the file system allows" in run.refused(capsys, f"resume={'x' * 300}")


def test_the_older_one_is_taken_where_the_newest_is_damaged(run: Run):
    older, newest = run.save(step=2), run.save(step=4)
    (newest / "learner" / "random_rank_00000.pt").unlink()
    found = run.resume()
    assert found.folder == older
    assert "random_rank_00000.pt is missing" in found.notes[0]


@pytest.mark.parametrize(
    "change",
    [
        "algorithm.kl_coefficient=0.25",
        "generation.temperature=0.5",
        "generation.max_response_tokens=5",
        "reward.functions=[exact_match]",
    ],
)
def test_what_rl_optimises_is_refused_unless_accepted(tmp_path, capsys, change):
    run = Run("rl", tmp_path)
    run.save()
    key = change.partition("=")[0]
    message = run.refused(capsys, change)
    assert f"{key}: " in message
    assert f"'checkpoint.accept_changes=[{key}]'" in message
    (note,) = run.resume(change, f"checkpoint.accept_changes=[{key}]").notes
    assert f"{key}: " in note


def test_what_a_preference_stage_optimises_is_refused(tmp_path, capsys):
    run = Run("preference", tmp_path)
    run.save()
    assert "preference.beta: 0.1 -> 0.5" in run.refused(capsys, "preference.beta=0.5")


def test_a_reward_model_stage_too(tmp_path, capsys):
    run = Run("reward_model", tmp_path)
    run.save()
    change = "reward_model.centring_coefficient=0.5"
    assert "reward_model.centring_coefficient: " in run.refused(capsys, change)


def test_changed_code_of_a_reward_is_refused_unless_accepted(tmp_path, capsys):
    run = Run("rl", tmp_path)
    run.save()
    (tmp_path / "reward.py").write_text(REWARD.replace("1.0", "2.0"))
    message = run.refused(capsys)
    assert f"the code in {tmp_path / 'reward.py'} has changed" in message
    (note,) = run.resume("checkpoint.accept_changes=[reward.functions]").notes
    assert "has changed" in note


def test_code_that_a_reward_imports_is_its_code_too(tmp_path, capsys):
    run = Run("rl", tmp_path)
    (tmp_path / "reward.py").write_text(f"import scale_of_reward\n{REWARD}")
    helper = tmp_path / "scale_of_reward.py"
    helper.write_text("SCALE = 1\n")
    run.save()
    assert run.resume().notes == ()
    helper.write_text("SCALE = 2\n")
    assert f"the code in {helper} has changed" in run.refused(capsys)


def test_reward_code_that_was_moved_goes_on(tmp_path, capsys):
    run = Run("rl", tmp_path)
    run.save()
    (tmp_path / "moved").mkdir()
    moved = (tmp_path / "reward.py").rename(tmp_path / "moved" / "score.py")
    entry = f"reward.functions=[{{path: '{moved}:score', name: reward.score}}]"
    saved = run.config().reward.functions
    assert saved == [f"{tmp_path / 'reward.py'}:score"]
    name = read_functions(saved)[0].name
    entry = entry.replace("reward.score", name)
    (note,) = run.resume(entry).notes
    assert "(moved: the same code)" in note
    moved.write_text(REWARD.replace("1.0", "2.0"))
    assert "reward.functions: " in run.refused(capsys, entry)


def test_a_moved_reference_must_fit_too(tmp_path, capsys):
    """Its folder is looked at where the reference is part of a checkpoint."""
    run = Run("rl", tmp_path)
    changes = ["algorithm.kl_coefficient=0.1", "algorithm.reference_every=2"]
    folder = run.save(*changes)
    message = run.refused(capsys, *changes)
    assert f"{folder / 'reference' / 'role.json'} is missing" in message


@pytest.mark.parametrize("key", ["texts.path", "data.path"])
def test_a_relative_path_of_an_earlier_release(tmp_path, monkeypatch, key):
    run = Run("rl", tmp_path)
    (tmp_path / "texts.jsonl").write_text('{"text": "a b c"}\n')
    changes = [
        f"{key}={tmp_path / 'texts.jsonl'}",
        *(["algorithm.ptx_coefficient=0.5"] if key == "texts.path" else []),
    ]
    folder = run.save(*changes)
    state = json.loads((folder / "run.json").read_text())
    assert state["identity"][key] == str(tmp_path / "texts.jsonl")
    state["identity"][key] = "texts.jsonl"
    del state["configuration"], state["code"]
    (folder / "run.json").write_text(json.dumps(state))
    (folder / "COMMITTED").write_text("")
    (folder / "manifest.json").unlink()
    monkeypatch.chdir(tmp_path)
    assert run.resume(*changes).folder == folder


class Models:
    """Folders of models whose weights can be changed without a change of any size or date."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, name: str) -> str:
        place = self.folder / name
        place.mkdir()
        (place / "config.json").write_text('{"model_type": "llama"}')
        (place / "spiece.model").touch()
        save_file({"weight": numpy.zeros(2**19, "float32")}, place / "model.safetensors")
        return str(place)

    def train(self, name: str) -> None:
        file = self.folder / name / "model.safetensors"
        before = file.stat()
        save_file({"weight": numpy.full(2**19, 1e-3, "float32")}, file)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert file.stat().st_size == before.st_size


@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("reference.path", ["algorithm.kl_coefficient=0.1"]),
        ("reward.model.path", ["reward.model.foreign_tokens=text"]),
        ("reward.judge.model", []),
    ],
)
def test_other_weights_in_the_same_folder_are_refused(tmp_path, capsys, key, more):
    run, models = Run("rl", tmp_path), Models(tmp_path)
    changes = [f"{key}={models.make('scorer')}", *more]
    run.save(*changes)
    assert run.resume(*changes).notes == ()
    models.train("scorer")
    message = run.refused(capsys, *changes)
    assert f"{key}: other content of model.safetensors" in message
    assert f"'checkpoint.accept_changes=[{key}]'" in message
    (note,) = run.resume(*changes, f"checkpoint.accept_changes=[{key}]").notes
    assert f"{key}: other content" in note


@pytest.mark.parametrize(
    ("stage", "more", "is_refused"),
    [
        ("rl", ["algorithm.kl_coefficient=0"], False),
        ("rl", ["algorithm.kl_coefficient=0.1"], True),
        ("rl", ["algorithm=ppo", "algorithm.kl_coefficient=0"], False),
        ("rl", ["algorithm=ppo", "algorithm.kl_coefficient=0", "critic.lora.r=2"], True),
        ("sft", [], False),
        ("sft", ["training.lora.r=2"], True),
        ("sft", ["training.freeze_layers=1"], True),
        ("preference", [], True),
    ],
)
def test_a_changed_base_model(tmp_path, capsys, stage, more, is_refused):
    """A checkpoint replaces its weights, unless they are frozen or those of a reference."""
    run, models = Run(stage, tmp_path), Models(tmp_path)
    changes = [f"model.path={models.make('base')}", *more]
    run.save(*changes)
    models.train("base")
    if is_refused:
        assert "model.path: other content of model.safetensors" in run.refused(capsys, *changes)
        changes.append("checkpoint.accept_changes=[model.path]")
    (note,) = run.resume(*changes).notes
    assert "model.path: other content of model.safetensors" in note


def test_a_model_that_was_copied_elsewhere_is_the_same(tmp_path, capsys):
    run, models = Run("rl", tmp_path), Models(tmp_path)
    run.save(f"reference.path={models.make('scorer')}", "algorithm.kl_coefficient=0.1")
    models.make("copy")
    changes = (f"reference.path={tmp_path / 'copy'}", "algorithm.kl_coefficient=0.1")
    (note,) = run.resume(*changes).notes
    assert "reference.path: " in note
    models.train("copy")
    assert "reference.path: " in run.refused(capsys, *changes)


def test_other_ends_of_a_replaced_base_are_refused(tmp_path, capsys):
    """A checkpoint has the weights; the tokens that end a text are still those of the folder."""
    run, models = Run("sft", tmp_path), Models(tmp_path)
    change = f"model.path={models.make('base')}"
    run.save(change)
    (tmp_path / "base" / "generation_config.json").write_text('{"eos_token_id": [1, 5]}')
    message = run.refused(capsys, change)
    assert "model.path: other content of generation_config.json" in message


def test_a_release_that_kept_no_hashes_of_models(tmp_path):
    run, models = Run("sft", tmp_path), Models(tmp_path)
    change = f"model.path={models.make('base')}"
    folder = run.save(change)
    state = json.loads((folder / "run.json").read_text())
    assert state.pop("models")["model.path"].keys() >= {"config.json", "model.safetensors"}
    (folder / "run.json").write_text(json.dumps(state))
    (folder / "COMMITTED").write_text("")
    (folder / "manifest.json").unlink()
    first, _ = run.resume(change).notes
    assert "kept no hashes of model files: whether the files behind model.path have" in first


# The place of the rows in the state of the driver.
PLACES = {
    "rl": lambda rows: {"pipeline": {"prompts": rows}},
    "sft": lambda rows: {"steps": rows},
    "preference": lambda rows: {"steps": rows},
}


@pytest.mark.parametrize("run", PLACES, indirect=True)
def test_other_rows_are_found_before_the_start(run: Run, tmp_path: Path, monkeypatch, capsys):
    """The rows of the same file have changed since the checkpoint."""

    def connected(**_: object) -> None:
        raise AssertionError("Ray would start here")

    for module in (rl_run, fit_run):
        monkeypatch.setattr(module, "connected", connected)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text() * 3)
    run.arguments.append(f"model.path={tiny_random(tmp_path / 'tiny')}")
    if run.stage == "rl":
        run.arguments += [f"data.path={rows}", "data.max_prompt_tokens=64"]
    else:
        run.arguments.append("examples.eval_share=0")
    kind = "prompts" if run.stage == "rl" else "samples"
    saved = {"next_index": 2, f"num_{kind}": 3, "fingerprint": "f", "seed": 0, "shuffle": True}
    run.save(state=PLACES[run.stage](saved))
    capsys.readouterr()
    assert main(run.arguments) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert (
        f"the checkpoint's stream of {kind} is not that of this run: fingerprint was 'f' and"
        in (message)
    )
    assert "resume=never" in message


@pytest.mark.parametrize("run", PLACES, indirect=True)
def test_rows_that_were_moved_go_on_and_others_do_not(
    run: Run, tmp_path: Path, monkeypatch, capsys
):
    def connected(**_: object) -> None:
        raise RequestError("Ray would start here")

    for module in (rl_run, fit_run):
        monkeypatch.setattr(module, "connected", connected)
    key = "data.path" if run.stage == "rl" else "examples.path"
    rows, moved = tmp_path / "rows.jsonl", tmp_path / "moved" / "rows.jsonl"
    rows.write_text(rows.read_text() * 3)
    run.arguments += [f"model.path={tiny_random(tmp_path / 'tiny')}", f"{key}={rows}"]
    of_stage = "data.max_prompt_tokens=64" if run.stage == "rl" else "examples.eval_share=0"
    run.arguments.append(of_stage)
    kind = "prompts" if run.stage == "rl" else "samples"
    saved = {"next_index": 2, f"num_{kind}": 3, "fingerprint": "f", "seed": 0, "shuffle": True}
    run.save(step=1, state=PLACES[run.stage](saved))
    moved.parent.mkdir()
    rows.rename(moved)
    if run.stage == "rl":
        # Such a state says nothing of the columns that rewards read.
        assert f"{key}='{rows}' there" in run.refused(capsys, f"{key}={moved}")
        saved["rows_fingerprint"] = "g"
        run.save(step=1, state=PLACES[run.stage](saved))

    def said() -> str:
        assert main([*run.arguments, f"{key}={moved}"]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    other = said()
    saved |= dict(re.findall(r"(\w*fingerprint) was '\w+' and is '(\w+)'", other))
    run.save(step=1, state=PLACES[run.stage](saved))
    assert "Ray would start here" in said()
    (note,) = run.resume(f"{key}={moved}").notes
    assert f'{key}: "{rows}" -> "{moved}" (moved: all rows are compared' in note
    moved.write_text(moved.read_text().replace('"b"', '"a"'))
    assert f"the checkpoint's stream of {kind} is not that of this run" in said()
