"""The checkpoint that a run goes on from: the newest whole one, and what is said of the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_ray.checkpoint_files.facts import DEEPSPEED
from rlhf_ray.config.errors import RequestError
from rlhf_ray.driver.checkpoint_state import DamagedCheckpointError, reading_state
from rlhf_ray.driver.resume_choice import checkpoint_to_resume, verified
from tests.unit.driver.checkpoint_fakes import (
    LAYOUT,
    WritingRanks,
    expected,
    run_settings,
    step_checkpoints,
    without_manifest,
    written,
)

SHARD = "learner/state_rank_00001_0000.safetensors"


def truncate(folder: Path) -> None:
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(content[:-1])


def cut_state(folder: Path) -> None:
    content = (folder / "run.json").read_bytes()
    (folder / "run.json").write_bytes(content[: len(content) // 2])


def keep_the_marker_alone(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "COMMITTED":
            path.unlink()


def change_role(folder: Path) -> None:
    file = folder / "learner" / "role.json"
    file.write_text(file.read_text().replace('"world_size": 2', '"world_size": 4'))


def state_of_step_one(folder: Path) -> None:
    """The files of another step under this name, as a copy with the wrong target leaves them."""
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "step_000001", folder)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "shard truncated": (truncate, "0000.safetensors has 16 bytes, and had 17"),
    "shard missing": (lambda f: (f / SHARD).unlink(), "0000.safetensors is missing"),
    "run.json truncated": (cut_state, "run.json has"),
    "run.json missing": (lambda f: (f / "run.json").unlink(), "run.json is missing"),
    "run.json a folder": (
        lambda f: ((f / "run.json").unlink(), (f / "run.json").mkdir()),
        "run.json",
    ),
    "manifest missing": (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
    "manifest cut": (lambda f: (f / "manifest.json").write_text("{"), "manifest.json"),
    "marker of another": (lambda f: (f / "COMMITTED").write_text("yes"), "manifest.json"),
    "role.json missing": (lambda f: (f / "learner/role.json").unlink(), "role.json is missing"),
    "role.json changed": (change_role, "learner/role.json has changed since it was written"),
    "another step": (
        state_of_step_one,
        "run.json in it is of step 1: the folder was renamed or overwritten; its name was "
        "step_000001",
    ),
    "the marker alone": (keep_the_marker_alone, "manifest.json is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_auto_passes_over_a_damaged_one_and_says_why(tmp_path, damage):
    older, newest = written(tmp_path, 1, 2)
    break_it, words = DAMAGES[damage]
    break_it(newest)
    found = checkpoint_to_resume(tmp_path, "auto", expected())
    assert found is not None
    assert found.folder == older
    assert found.notes[0].startswith(f"passed over: the checkpoint {newest} is damaged: ")
    assert words in found.notes[0]
    assert "the next checkpoint removes step_000002" in found.notes[1]


@pytest.mark.parametrize("damage", DAMAGES)
def test_one_that_was_asked_for_is_refused_with_the_way_out(tmp_path, damage):
    older, newest = written(tmp_path, 1, 2)
    break_it, words = DAMAGES[damage]
    break_it(newest)
    with pytest.raises(RequestError) as refused:
        checkpoint_to_resume(tmp_path, str(newest), expected())
    assert words in str(refused.value)
    assert f"resume={older} goes on from the newest whole one" in str(refused.value)


# Without a manifest nothing else protects the driver's state.
STATES = {
    "not JSON": ("{", "is no JSON"),
    "empty": ("", "is no JSON"),
    "null": ("null", "is a NoneType"),
    "a list": ("[1]", "is a list"),
    "no step": ('{"identity": {}}', "step=None"),
    "a step in words": ('{"step": "two", "identity": {}}', "step='two'"),
    "a negative step": ('{"step": -1, "identity": {}}', "step=-1"),
    "true for a step": ('{"step": true, "identity": {}}', "step=True"),
    "no identity": ('{"step": 2}', "has no identity"),
    "null for identity": ('{"step": 2, "identity": null}', "has no identity"),
    "no pipeline": ('{"step": 2, "identity": {"seed": 0}, "adaptive": {}}', "has no pipeline"),
    "nested too deep": ("[" * 100_000, "is no JSON"),
    "not UTF-8": (b"\xff\xfe{", "is no JSON"),
}


@pytest.mark.parametrize("state", STATES)
def test_a_damaged_state_of_an_earlier_release(tmp_path, state):
    older, newest = written(tmp_path, 1, 2)
    without_manifest(newest)
    content, words = STATES[state]
    data = content if isinstance(content, bytes) else content.encode()
    (newest / "run.json").write_bytes(data)
    found = checkpoint_to_resume(tmp_path, "auto", expected())
    assert found is not None
    assert found.folder == older
    assert words in found.notes[0]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"world_size": 2}', '{"a": 1}', "null"])
def test_damaged_facts_of_an_earlier_release(tmp_path, content):
    older, newest = written(tmp_path, 1, 2)
    without_manifest(newest)
    (newest / "learner" / "role.json").write_text(content)
    found = checkpoint_to_resume(tmp_path, "auto", expected())
    assert found is not None
    assert found.folder == older
    assert "role.json is damaged" in found.notes[0]


def test_none_is_whole(tmp_path):
    for folder in written(tmp_path, 1, 2):
        truncate(folder)
    with pytest.raises(RequestError) as refused:
        checkpoint_to_resume(tmp_path, "auto", expected())
    assert str(refused.value).count("is damaged") == 2
    assert "resume=never starts from step 0" in str(refused.value)


def test_an_unfinished_one_is_passed_over_and_said(tmp_path):
    (whole,) = written(tmp_path, 1)
    (tmp_path / "checkpoints" / "step_000002").mkdir()
    found = checkpoint_to_resume(tmp_path, "auto", expected())
    assert found is not None
    assert found.folder == whole
    assert found.notes == (
        f"passed over: the checkpoint {tmp_path}/checkpoints/step_000002 was not written to the "
        f"end",
    )


def test_a_whole_one_needs_no_words(tmp_path):
    older, newest = written(tmp_path, 1, 2)
    found = checkpoint_to_resume(tmp_path, "auto", expected())
    assert found is not None
    assert (found.folder, found.older, found.notes) == (newest, (older,), ())
    asked = checkpoint_to_resume(tmp_path, str(older), expected())
    assert asked is not None
    assert (asked.folder, asked.older) == (older, ())
    assert asked.notes == (
        "the next checkpoint removes step_000002: the run goes on from an earlier step",
    )


def test_no_checkpoint_and_never(tmp_path):
    assert checkpoint_to_resume(tmp_path, "auto", expected()) is None
    written(tmp_path, 1)
    assert checkpoint_to_resume(tmp_path, "never", expected()) is None


def test_one_of_an_earlier_release_is_read_and_said_to_be_unverified(tmp_path):
    (folder,) = written(tmp_path, 1)
    without_manifest(folder)
    found = checkpoint_to_resume(tmp_path, "auto", expected())
    assert found is not None
    assert found.folder == folder
    assert any("its files are not verified" in note for note in found.notes)
    assert any("kept no configuration" in note for note in found.notes)


@pytest.mark.parametrize("resume", ["x" * 300, "/" + "y" * 5000, "nowhere", "nul\0byte"])
def test_a_name_that_is_no_checkpoint(tmp_path, resume):
    with pytest.raises(RequestError, match="is no committed checkpoint") as refused:
        checkpoint_to_resume(tmp_path, resume, expected())
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"zero_stage": 3}, "written with zero_stage=2, and this run has zero_stage=3"),
        ({"dtype": "bfloat16"}, "written with dtype=float32, and this run has dtype=bfloat16"),
        ({"num_ranks": 4}, "written with num_ranks=2, and this run has num_ranks=4"),
    ],
)
def test_another_layout_is_refused_before_the_start(tmp_path, changed, words):
    """And no older checkpoint is taken for it: that would lose steps for a wrong setting."""
    written(tmp_path, 1, 2, ranks=WritingRanks(format=DEEPSPEED))
    with pytest.raises(RequestError, match=words):
        checkpoint_to_resume(tmp_path, "auto", expected(layout=replace(LAYOUT, **changed)))


def test_another_number_format_is_refused_before_the_start(tmp_path):
    written(tmp_path, 1)
    with pytest.raises(RequestError, match="dtype=float32, and this run has dtype=bfloat16"):
        checkpoint_to_resume(tmp_path, "auto", expected(layout=replace(LAYOUT, dtype="bfloat16")))


def test_slices_of_another_number_of_ranks_are_refused_before_the_start(tmp_path):
    written(tmp_path, 1)
    layout = replace(LAYOUT, tensor_parallel_size=2)
    with pytest.raises(RequestError, match=r"tensor_parallel_size=1, and this run has .*_size=2"):
        checkpoint_to_resume(tmp_path, "auto", expected(layout=layout))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"num_ranks": 1}, "resumed on 1 rank at zero_stage=2"),
        ({"num_ranks": 8, "zero_stage": 3}, "resumed on 8 ranks at zero_stage=3"),
        ({"zero_stage": 0}, "resumed on 2 ranks at zero_stage=0"),
    ],
)
def test_another_layout_is_listed(tmp_path, changed, words):
    (folder,) = written(tmp_path, 1)
    found = checkpoint_to_resume(tmp_path, "auto", expected(layout=replace(LAYOUT, **changed)))
    assert found is not None
    assert found.folder == folder
    (note,) = found.notes
    assert note.startswith(f"learner: saved by 2 ranks at zero_stage=2, {words}")
    assert ("gone are not used" in note) == (changed.get("num_ranks") == 1)
    assert ("start their random generators from the seed" in note) == (
        changed.get("num_ranks") == 8
    )


def test_the_format_of_a_later_release_is_refused(tmp_path):
    """And no older checkpoint is taken for it, which would remove it."""
    written(tmp_path, 1)
    written(tmp_path, 2, ranks=WritingRanks(format="lattice"))
    with pytest.raises(RequestError, match="has format='lattice', and this release reads slices"):
        checkpoint_to_resume(tmp_path, "auto", expected())


def test_another_run_is_refused_before_the_start(tmp_path):
    written(tmp_path, 1)
    other = expected(run_settings(identity={"seed": 1}))
    with pytest.raises(RequestError, match="seed=0 there, 1 here"):
        checkpoint_to_resume(tmp_path, "auto", other)


class TestVerification:
    """Content that only the ranks read."""

    def change(self, folder: Path) -> None:
        content = (folder / SHARD).read_text()
        (folder / SHARD).write_text(content.upper())

    def test_auto_falls_back_and_says_so(self, tmp_path):
        oldest, older, newest = written(tmp_path, 1, 2, 3)
        truncate(older)
        self.change(newest)
        found = checkpoint_to_resume(tmp_path, "auto", expected())
        assert found is not None
        assert found.folder == newest, "its sizes are right"
        said: list[str] = []
        assert verified(found, step_checkpoints(tmp_path), said.append) == oldest
        assert f"{newest} is damaged: {SHARD} has changed since it was written" in said[0]
        assert f"{older} is damaged: {SHARD} has 16 bytes, and had 17" in said[1]

    def test_one_that_was_asked_for_is_refused(self, tmp_path):
        older, newest = written(tmp_path, 1, 2)
        self.change(newest)
        found = checkpoint_to_resume(tmp_path, str(newest), expected())
        assert found is not None
        with pytest.raises(RequestError) as refused:
            verified(found, step_checkpoints(tmp_path), [].append)
        assert f"{SHARD} has changed" in str(refused.value)
        assert f"resume={older} goes on" in str(refused.value)

    def test_nothing_is_left(self, tmp_path):
        (only,) = written(tmp_path, 1)
        self.change(only)
        found = checkpoint_to_resume(tmp_path, "auto", expected())
        assert found is not None
        with pytest.raises(RequestError, match="No other is whole: resume=never starts"):
            verified(found, step_checkpoints(tmp_path), [].append)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda: {}["position"],
        lambda: len(3),  # type: ignore[arg-type]
        lambda: json.loads("{"),
        lambda: None.items(),  # type: ignore[attr-defined]
        lambda: next(iter({}.values()), [])[0],
    ],
)
def test_what_a_damaged_state_does_to_its_readers_is_a_sentence(tmp_path, break_it):
    with (
        pytest.raises(DamagedCheckpointError, match=r"run\.json cannot be restored"),
        reading_state(tmp_path),
    ):
        break_it()


def test_a_refusal_of_a_reader_stays_as_it_is(tmp_path):
    with pytest.raises(RequestError, match="as it was"), reading_state(tmp_path):
        raise RequestError("as it was")


def test_a_copy_elsewhere_may_have_any_name(tmp_path):
    (folder,) = written(tmp_path, 1)
    copy = Path(shutil.copytree(folder, tmp_path / "backup"))
    found = checkpoint_to_resume(tmp_path, str(copy), expected())
    assert found is not None
    assert found.folder == copy


@pytest.mark.parametrize("name", ["world_size", "optimizer_step"])
def test_facts_of_no_role_in_a_checkpoint_without_a_manifest(tmp_path, name):
    older, newest = written(tmp_path, 1, 2)
    without_manifest(newest)
    file = newest / "learner" / "role.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: -1}))
    found = checkpoint_to_resume(tmp_path, "auto", expected())
    assert found is not None
    assert found.folder == older
    assert "role.json is damaged" in found.notes[0]
