"""Stages that score call the reward functions before they start anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_ray.main import main
from rlhf_ray.stages.evaluate import run as evaluate_run
from rlhf_ray.stages.rl import run as rl_run
from rlhf_ray.testing.tiny import tiny_random

pytestmark = pytest.mark.unit_slow


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_random(tmp_path_factory.mktemp("model") / "tiny")


class _Started(Exception):  # noqa: N818 - a sign, no error
    """Ray would have been started."""


@pytest.mark.parametrize("stage", ["rl", "evaluate"])
def test_a_function_that_fails_ends_the_command_before_ray_starts(
    stage: str, model: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    def connected(**_: object) -> None:
        raise _Started

    for module in (rl_run, evaluate_run):
        monkeypatch.setattr(module, "connected", connected)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "1+1?", "answer": "2"}) + "\n")
    (tmp_path / "reward.py").write_text("def score(sample):\n    return sample.columns['levle']\n")
    trained = "model.path" if stage == "rl" else "evaluation.models.one"
    command = [
        *("recipe=demo", f"stage={stage}", f"{trained}={model}", "data.max_prompt_tokens=200"),
        *(f"data.path={tmp_path}/rows.jsonl", f"output_dir={tmp_path}/out", "resume=never"),
        f"reward.functions=[{tmp_path}/reward.py:score]",
    ]
    assert main(command) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("rlhf_ray: reward 'score' fails on the first row of rows (")
    assert f"KeyError: 'levle' ({tmp_path}/reward.py, line 2, in score)" in said
    assert main([*command, "reward.try_first_row=false"]) == 1
    assert "_Started" in capsys.readouterr().err
