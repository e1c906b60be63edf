"""What a resumed run has changed: listed, and refused where it decides what is optimised."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.driver.checkpoint_state import read_state
from rlhf_ray.driver.resume_changes import (
    RunSettings,
    _shown_both,
    check_identity,
    compare_settings,
)
from tests.unit.driver.checkpoint_fakes import run_settings, written

FOLDER = Path("checkpoints/step_000001")
REWARD = [{"path": "exact_match", "weight": 2.0}]


def compare(tmp_path: Path, here: RunSettings, **saved: Any) -> list[str]:
    (folder,) = written(tmp_path, 1)
    return compare_settings(folder, read_state(folder) | saved, here)


def test_nothing_has_changed(tmp_path):
    assert compare(tmp_path, run_settings()) == []


def test_other_settings_are_listed_with_both_values(tmp_path):
    here = run_settings(training__learning_rate=2e-6, deadlines__update_s=20.0)
    assert compare(tmp_path, here) == [
        "changed since the checkpoint: training.learning_rate: 1e-06 -> 2e-06; "
        "deadlines.update_s: 10.0 -> 20.0"
    ]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("reward__functions", REWARD, '"weight": 1.0}] -> [{"path"'),
        ("algorithm__kl_coefficient", 0.2, "algorithm.kl_coefficient: 0.1 -> 0.2"),
    ],
)
def test_what_is_optimised_is_refused_with_the_way_to_accept(tmp_path, key, value, words):
    name = key.replace("__", ".")
    with pytest.raises(RequestError) as refused:
        compare(tmp_path, run_settings(**{key: value}))
    assert words in str(refused.value)
    assert f"'checkpoint.accept_changes=[{name}]'" in str(refused.value)
    for accepted in (name, name.partition(".")[0]):
        here = run_settings(**{key: value}, accepted=[accepted])
        (line,) = compare(tmp_path, here)
        assert words in line


def test_all_refused_keys_are_named_and_one_is_not_enough(tmp_path):
    changed = {"reward__functions": REWARD, "algorithm__kl_coefficient": 0.2}
    with pytest.raises(RequestError) as refused:
        compare(tmp_path, run_settings(**changed))
    assert "accept_changes=[algorithm.kl_coefficient,reward.functions]" in str(refused.value)
    with pytest.raises(RequestError, match=r"algorithm\.kl_coefficient"):
        compare(tmp_path, run_settings(**changed, accepted=["reward"]))


def test_the_code_of_a_reward_function(tmp_path):
    here = replace(run_settings(), code={"/a/reward.py": "new", "/a/other.py": "first"})
    saved = {"/a/reward.py": "old"}
    with pytest.raises(RequestError, match=r"the code in /a/reward\.py has changed"):
        compare(tmp_path, here, code=saved)
    accepted = replace(here, accepted=("reward.functions",))
    (line,) = compare(tmp_path, accepted, code=saved)
    assert "the code in /a/reward.py has changed" in line


def test_two_ways_to_write_the_same_functions(tmp_path):
    here = run_settings(reward__functions=[{"path": "exact_match", "weight": 1.0}])
    (folder,) = written(tmp_path, 1)
    state = read_state(folder)
    saved = state["configuration"] | {"reward.functions": ["exact_match"]}
    assert compare_settings(folder, {**state, "configuration": saved}, here) == []
    other = run_settings(reward__functions=[{"path": "exact_match", "weight": 2.0}])
    with pytest.raises(RequestError, match=r"reward\.functions"):
        compare_settings(folder, {**state, "configuration": saved}, other)


def test_a_module_that_is_found_elsewhere(tmp_path):
    saved = {"/v1/reward.py": "old", "/v1/other.py": "same"}
    moved = replace(run_settings(), code={"/v2/reward.py": "old", "/v1/other.py": "same"})
    assert compare(tmp_path, moved, code=saved) == []
    other = replace(moved, code={"/v2/reward.py": "new", "/v1/other.py": "same"})
    with pytest.raises(RequestError, match=r"the code in /v2/reward\.py has changed"):
        compare(tmp_path, other, code=saved)


def test_a_key_that_the_release_did_not_have_had_its_default(tmp_path):
    key = "algorithm.clip_ratio_low"
    here = run_settings(algorithm__clip_ratio_low=0.2)
    as_before = replace(here, defaults={**here.defaults, key: 0.2})
    assert compare(tmp_path, as_before) == []
    other = replace(here, defaults={**here.defaults, key: 0.1})
    with pytest.raises(RequestError, match=r"algorithm\.clip_ratio_low: 0\.1 -> 0\.2"):
        compare(tmp_path, other)


def test_a_key_under_its_old_name(tmp_path):
    here = run_settings(algorithm__nll_coefficient=0.5)
    (folder,) = written(tmp_path, 1)
    state = read_state(folder)
    saved = state["configuration"] | {"algorithm.positive_coefficient": 0.5}
    assert compare_settings(folder, state | {"configuration": saved}, here) == []


@pytest.mark.parametrize("key", ["texts.path", "data.path", "model.path", "examples.path"])
def test_a_relative_path_of_an_earlier_release_is_the_same_place(tmp_path, monkeypatch, key):
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "other.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    check_identity(FOLDER, {key: "rows.jsonl"}, {key: str(tmp_path / "rows.jsonl")})
    check_identity(FOLDER, {key: "./rows.jsonl"}, {key: str(tmp_path / "rows.jsonl")})
    for there in ("other.jsonl", "missing.jsonl", None, "x" * 5000, "nul\0"):
        with pytest.raises(RequestError, match=key):
            check_identity(FOLDER, {key: there}, {key: str(tmp_path / "rows.jsonl")})


def test_a_model_in_another_place_is_known_by_its_files():
    there, here = {"model.path": "/old/model"}, {"model.path": "/new/model"}
    files = {"model.path": {"config.json": "a", "model.safetensors": "b"}}
    check_identity(FOLDER, there, here, files_there=files, files_here=files)
    other = {"model.path": {**files["model.path"], "model.safetensors": "c"}}
    for saved, words in (
        (other, r"'/new/model' here \(other content of model\.safetensors\)\. Use"),
        (None, r"\(whether the files are the same is not known\)"),
        ({"model.path": {}}, "is not known"),
        ({"model.path": ["damaged"]}, "is not known"),
    ):
        with pytest.raises(RequestError, match=words):
            check_identity(FOLDER, there, here, files_there=saved, files_here=files)
    with pytest.raises(RequestError, match=r"seed=1 there, 2 here\. Use"):
        check_identity(FOLDER, {"seed": 1}, {"seed": 2}, files_there=files, files_here=files)


def test_only_paths_are_compared_as_places(tmp_path, monkeypatch):
    (tmp_path / "grpo").mkdir()
    monkeypatch.chdir(tmp_path)
    there, here = {"algorithm.name": "grpo"}, {"algorithm.name": str(tmp_path / "grpo")}
    with pytest.raises(RequestError, match=r"algorithm\.name"):
        check_identity(FOLDER, there, here)


def test_long_values_are_shown_where_they_differ():
    def functions(weight: float) -> list[dict[str, Any]]:
        return [
            {"path": f"/a/long/path/to/rewards.py:number_{i}", "weight": 1.0} for i in range(5)
        ] + [{"path": "last", "weight": weight}]

    before, after = _shown_both(functions(1.0), functions(2.0))
    assert before.startswith("...")
    assert '"weight": 1.0' in before.rpartition("last")[2]
    assert '"weight": 2.0' in after.rpartition("last")[2]
    assert max(len(before), len(after)) <= 126
    assert _shown_both("a" * 200, "a" * 201) == (f'...{"a" * 30}"', f'...{"a" * 31}"')
    assert _shown_both(1, 2) == ("1", "2")
