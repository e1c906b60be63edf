"""Evaluations while a policy is trained: when they are due, and which model is kept."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.driver.best_models import BestModels
from rlhf_ray.driver.checkpoints import Checkpoints
from rlhf_ray.driver.evaluation.collector import Collected
from rlhf_ray.driver.evaluation.evaluator import (
    BestPolicy,
    EvaluatorSettings,
    HeldOutEvaluator,
    NoBest,
    NoEvaluation,
)
from rlhf_ray.evaluation.answers import Answer, PromptAnswers
from rlhf_ray.evaluation.evaluation_report import ReportSettings
from rlhf_ray.testing.fakes import make_prompt

METRIC = "evaluation/greedy/reward/mean"
REPORT = ReportSettings(
    pass_at_k=(),
    success_by="reward",
    success_reward=1.0,
    win_by="reward",
    confidence=0.9,
    num_resamples=0,
    kl="none",
    ngram=2,
    seed=0,
)


def answered(reward: float) -> PromptAnswers:
    answer = Answer(
        sample_index=8,
        text="",
        num_tokens=3,
        is_cut=False,
        reward=reward,
        parts={},
        repeated=0.0,
        kl=None,
    )
    return PromptAnswers(
        prompt_id="r0",
        source="t",
        prompt="",
        reference_answer=None,
        answers={"greedy": (answer,)},
        distinct={"greedy": (1.0, 1.0)},
    )


class Rewarded:
    """A collector that finds one reward per call."""

    def __init__(self, *rewards: float) -> None:
        self._rewards = iter(rewards)

    def collect(self, prompts: Any) -> Collected:
        assert prompts == [make_prompt(0)]
        reward = next(self._rewards)
        return Collected(prompts=(answered(reward),), groups=(f"of {reward}",), failures=("lost",))


class World:
    """An output folder; the model of a step is a file with the step's number."""

    def __init__(
        self, output, *rewards, every=2, num_steps=7, lowest=False, ema=False, rows="r"
    ) -> None:
        self.said: list[str] = []
        self.output = output
        self.step = 0
        self.published: list[int] = []
        self.kept: list[tuple[str, list[Any]]] = []
        models = BestModels(output, self._save, num_checkpoints=2)
        self.best = BestPolicy(
            output, models, metric=METRIC, lowest_is_best=lowest, rows=rows, say=self.said.append
        )
        self.evaluator = HeldOutEvaluator(
            collect=Rewarded(*rewards).collect,
            prompts=[make_prompt(0)],
            best=self.best,
            average=self.published.append if ema else None,
            keep=lambda name, groups: self.kept.append((name, list(groups))),
            settings=EvaluatorSettings(every=every, num_steps=num_steps, report=REPORT),
        )

    def _save(self, folder) -> None:
        folder.mkdir()
        (folder / "weights").write_text(str(self.step))

    def at(self, step: int) -> dict[str, float]:
        self.step = step
        return self.evaluator.evaluate(step)

    def folders(self) -> list[str]:
        return sorted(path.name for path in (self.output / "best").iterdir())

    def note(self) -> dict[str, Any]:
        return json.loads((self.output / "best.json").read_text())


def test_due_at_the_interval_and_after_the_last_step(tmp_path):
    world = World(tmp_path)
    assert [step for step in range(1, 8) if world.evaluator.is_due(step)] == [2, 4, 6, 7]
    assert not any(NoEvaluation().is_due(step) for step in range(8))


def test_the_best_model_is_kept(tmp_path):
    world = World(tmp_path, 0.25, 0.75, 0.5)
    metrics = world.at(2)
    assert metrics[METRIC] == 0.25
    assert metrics["evaluation/failed_prompts"] == 1
    assert metrics["evaluation/best_step"] == 2
    world.at(4)
    metrics = world.at(6)
    assert (metrics["evaluation/best_step"], metrics["evaluation/best_value"]) == (4, 0.75)
    assert world.folders() == ["step_000004"]
    note = world.note()
    assert (note["step"], note["metric"], note["value"]) == (4, METRIC, 0.75)
    assert (tmp_path / "best" / "step_000004" / "weights").read_text() == "4"
    assert note["folder"] == str(tmp_path / "best" / "step_000004")
    assert world.kept[0] == ("step_000002", ["of 0.25"])


def test_the_first_of_equal_values_and_the_lowest_is_best(tmp_path):
    world = World(tmp_path, 0.5, 0.5, math.nan, 0.25, lowest=True)
    for step in (2, 4, 6):
        assert world.at(step)["evaluation/best_step"] == 2
    assert world.at(7)["evaluation/best_step"] == 7


def test_nan_is_never_the_best(tmp_path):
    world = World(tmp_path, math.nan)
    assert "evaluation/best_step" not in world.at(2)
    assert world.evaluator.state_dict() == {}
    assert not (tmp_path / "best.json").exists()


def test_the_ema_is_evaluated_only_after_the_last_step(tmp_path):
    world = World(tmp_path, 0.5, 0.25, 0.75, ema=True)
    assert "evaluation/ema/greedy/reward/mean" not in world.at(6)
    metrics = world.at(7)
    assert metrics[METRIC] == 0.25
    assert metrics["evaluation/ema/greedy/reward/mean"] == 0.75
    # The EMA is no candidate: only policies are kept.
    assert metrics["evaluation/best_step"] == 6
    assert world.published == [7]
    assert [name for name, _ in world.kept] == ["step_000006", "step_000007", "step_000007_ema"]


def commit(world: World, step: int):
    """A checkpoint as `driver.run_checkpoints.RunCheckpoints` writes it; its folder."""
    checkpoints = Checkpoints(world.output, keep_last=2)
    folder = checkpoints.begin(step)
    checkpoints.commit(folder, {"evaluation": world.evaluator.state_dict()})
    world.evaluator.pin()
    return json.loads((folder / "run.json").read_text())["evaluation"]


def test_a_resumed_run_knows_the_best_before_its_checkpoint(tmp_path):
    killed = World(tmp_path, 0.5, 0.75)
    killed.at(2)
    state = commit(killed, 2)
    killed.at(4)
    # The run may have to go on from step 2.
    assert killed.folders() == ["step_000002", "step_000004"]

    resumed = World(tmp_path, 0.25, 0.625)
    resumed.evaluator.load_state_dict(state, tmp_path)
    assert resumed.folders() == ["step_000002"]
    assert (resumed.note()["step"], resumed.note()["value"]) == (2, 0.5)
    assert resumed.at(4)["evaluation/best_step"] == 2
    assert resumed.at(6)["evaluation/best_step"] == 6


def test_resuming_from_another_folder_copies_its_best_model(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = World(tmp_path / "a", 0.5)
    first.at(2)
    state = commit(first, 2)
    second = World(tmp_path / "b")
    second.evaluator.load_state_dict(state, tmp_path / "a")
    assert (tmp_path / "b" / "best" / "step_000002" / "weights").read_text() == "2"
    assert first.folders() == ["step_000002"]


def test_a_missing_best_model_is_refused(tmp_path):
    state = {"step": 2, "value": 0.5, "metric": METRIC}
    with pytest.raises(RequestError, match="best model before the checkpoint"):
        World(tmp_path).evaluator.load_state_dict(state, tmp_path)


def test_another_metric_or_a_release_without_evaluation_starts_without_a_best(tmp_path):
    for state in ({"step": 2, "value": 0.5, "metric": "evaluation/kl/reference"}, {}):
        world = World(tmp_path, 0.0)
        world.evaluator.load_state_dict(state, tmp_path)
        assert world.at(4)["evaluation/best_step"] == 4


def test_scores_of_other_held_out_rows_are_not_compared(tmp_path):
    first = World(tmp_path, 0.75, rows="six")
    first.at(2)
    state = commit(first, 2)
    same, other = World(tmp_path, rows="six"), World(tmp_path, 0.25, rows="four")
    same.evaluator.load_state_dict(state, tmp_path)
    assert same.said == []
    other.evaluator.load_state_dict(state, tmp_path)
    (line,) = other.said
    assert "held-out prompts are not those of the checkpoint" in line
    assert "step 2 with" in line
    assert other.at(4)["evaluation/best_step"] == 4


def test_a_new_run_removes_the_models_of_an_earlier_run(tmp_path):
    World(tmp_path, 0.5).at(2)
    world = World(tmp_path)
    world.best.clear()
    assert world.folders() == []
    assert not (tmp_path / "best.json").exists()


def test_no_model_is_kept_without_keep_best():
    best = NoBest()
    best.clear()
    best.pin()
    best.load_state_dict({"step": 2}, Path())
    assert best.consider(3, {METRIC: 1.0}) == {}
    assert best.state_dict() == {}


@pytest.mark.parametrize("left", [["config.json", "tokenizer.json"], []])
def test_a_best_model_without_its_weights_is_refused(tmp_path, left):
    """It may become the result of the run."""
    first = World(tmp_path, 0.5)
    first.at(2)
    state = first.evaluator.state_dict()
    (tmp_path / "best" / "step_000002" / "weights").unlink()
    for name in left:
        (tmp_path / "best" / "step_000002" / name).write_text("{}")
    with pytest.raises(RequestError, match=r"a folder without weights.* resume=never"):
        World(tmp_path).evaluator.load_state_dict(state, tmp_path)
