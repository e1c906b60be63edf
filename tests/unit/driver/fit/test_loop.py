"""The loop that learns from examples, on fake ranks: order, evaluation, early stop, resume."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.data.prompts.order import RowOrder
from rlhf_ray.data.rows import DataError
from rlhf_ray.driver.best_models import BestModels, LastModel
from rlhf_ray.driver.checkpoints import Checkpoints, StepCheckpoints
from rlhf_ray.driver.fit.checkpoints import FitCheckpoints, FitState
from rlhf_ray.driver.fit.held_out import NOTHING_EVALUATED, HeldOut, NoHeldOut
from rlhf_ray.driver.fit.loop import FitLoop, FitSettings, fit
from rlhf_ray.driver.fit.steps import FitSteps, count_steps
from rlhf_ray.driver.run_log import FitLog
from rlhf_ray.testing.fake_waiter import InProcessWaiter
from tests.unit.driver.fit.fit_fakes import FakeMetrics, SummingRanks

ROWS = (1, 10, 100, 1000, 10_000)


class Run:
    """A run over five rows, two a step, three epochs: eight steps, the last of one row."""

    def __init__(
        self,
        folder: Path,
        *,
        losses: Sequence[float] = (),
        eval_every: int = 2,
        patience: int = 0,
        min_improvement: float = 0.0,
        max_steps: int | None = None,
        fingerprint: str = "f",
        keep_best: bool = True,
        dies_at: int = -1,
    ) -> None:
        self.folder = folder
        self.ranks = SummingRanks(losses=losses or (1.0,))
        self.metrics = FakeMetrics(dies_at)
        waiter = InProcessWaiter()
        save = self.ranks.save_model
        self.models = BestModels(folder, save, num_checkpoints=2) if keep_best else LastModel(save)
        order = RowOrder(
            "samples", num_rows=len(ROWS), fingerprint=fingerprint, seed=3, shuffle=True
        )
        steps = FitSteps(
            ROWS,
            order=order,
            spread=lambda rows: [rows[0::2], rows[1::2]],
            samples_per_step=2,
            num_epochs=3,
            max_steps=max_steps,
        )
        held_out = HeldOut(self.ranks, waiter, [(), ()], every=eval_every, timeout_s=1.0)
        checkpoints = StepCheckpoints(
            Checkpoints(folder, keep_last=2),
            roles={"learner": self.ranks},
            waiter=waiter,
            every_steps=3,
            timeout_s=1.0,
            identity={"stage": "sft"},
        )
        self.checkpoints = FitCheckpoints(checkpoints, steps=steps, models=self.models)
        self.loop = FitLoop(
            steps=steps,
            role=self.ranks,
            held_out=held_out if losses else NoHeldOut(),
            models=self.models,
            waiter=waiter,
            log=FitLog(metrics=self.metrics, progress=self.metrics),
            checkpoints=self.checkpoints,
            settings=FitSettings(
                patience=patience, min_improvement=min_improvement, update_timeout_s=1.0
            ),
        )

    def from_start(self) -> FitState:
        self.models.clear()
        return self._to_the_end(FitState(step=0, improvement=NOTHING_EVALUATED))

    def resumed(self, folder: Path) -> FitState:
        return self._to_the_end(self.checkpoints.load(folder))

    def _to_the_end(self, state: FitState) -> FitState:
        fit(self.loop, state)
        self.models.finish(state.improvement.best_step, self.folder / "model")
        return state

    def result(self) -> Any:
        return json.loads((self.folder / "model" / "weights.json").read_text())

    def kept(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "best").iterdir())


def test_every_row_is_learnt_from_once_an_epoch(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.from_start()
    given = [row for samples in run.ranks.updates for rank in samples for row in rank]
    assert [len(given[start : start + 5]) for start in (0, 5, 10)] == [5, 5, 5]
    assert sorted(given) == sorted(ROWS * 3)
    assert [sum(map(len, samples)) for samples in run.ranks.updates] == [2] * 7 + [1]
    assert [row["train/epochs"] for row in run.metrics.rows] == pytest.approx(
        [0.4, 0.8, 1.2, 1.6, 2.0, 2.4, 2.8, 3.0]
    )
    assert run.result() == run.ranks.weights


def test_epochs_have_different_orders(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.from_start()
    # Rows of one step lie on two ranks, in turn.
    flat = [row for samples in run.ranks.updates for pair in [samples] for row in _in_order(pair)]
    epochs = [tuple(flat[start : start + 5]) for start in (0, 5, 10)]
    assert {tuple(sorted(epoch)) for epoch in epochs} == {ROWS}
    assert len(set(epochs)) > 1


def _in_order(samples: tuple[Any, ...]) -> list[int]:
    first, second = samples
    return [row for pair in zip(first, [*second, None], strict=False) for row in pair if row]


@pytest.mark.parametrize(("rows", "per_step", "epochs", "steps"), [(5, 2, 3, 8), (4, 2, 1, 2)])
def test_number_of_steps(rows: int, per_step: int, epochs: int, steps: int) -> None:
    assert count_steps(rows, per_step, epochs) == steps


def test_it_ends_after_max_steps(tmp_path: Path) -> None:
    run = Run(tmp_path, max_steps=3)
    assert run.from_start().step == 3
    assert len(run.ranks.updates) == 3


def test_evaluations_before_between_and_after(tmp_path: Path) -> None:
    run = Run(tmp_path, losses=[5, 4, 3, 2, 1], eval_every=3)
    run.from_start()
    evaluated = {row["step"]: row["eval/loss"] for row in run.metrics.rows if "eval/loss" in row}
    assert evaluated == {0: 5, 3: 4, 6: 3, 8: 2}
    before, after = Run(tmp_path / "b", losses=[5, 4], eval_every=0), [0, 8]
    before.from_start()
    assert [row["step"] for row in before.metrics.rows if "eval/loss" in row] == after


def test_it_stops_when_the_held_out_loss_no_longer_falls(tmp_path: Path) -> None:
    # Evaluated before the first step and after steps 2, 4, 6: step 2 is the best.
    run = Run(tmp_path, losses=[9, 3, 3, 4, 1], patience=2)
    state = run.from_start()
    assert (state.step, state.improvement.best_step) == (6, 2)
    assert run.result() == _weights_after(run, 2)


def test_a_small_improvement_does_not_count(tmp_path: Path) -> None:
    losses = [9, 3, 2.95, 2.9, 2.0]
    run = Run(tmp_path, losses=losses, patience=2, min_improvement=0.5)
    assert run.from_start().step == 6
    assert Run(tmp_path / "b", losses=losses, patience=2).from_start().step == 8


def test_nan_is_no_improvement(tmp_path: Path) -> None:
    run = Run(tmp_path, losses=[9, float("nan"), 3, float("nan")])
    assert run.from_start().improvement.best_step == 4
    assert run.result() == _weights_after(run, 4)


def test_the_best_model_is_the_result_or_the_last_one(tmp_path: Path) -> None:
    losses = [9, 3, 1, 2, 2]
    best, last = (
        Run(tmp_path / name, losses=losses, keep_best=name == "best") for name in ("best", "last")
    )
    best.from_start()
    last.from_start()
    assert best.result() == _weights_after(best, 4)
    assert last.result() == last.ranks.weights != best.result()
    assert not (tmp_path / "last" / "best").exists()


def test_few_models_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, losses=[9, 8, 7, 6, 5, 4, 3, 2, 1], eval_every=1)
    run.from_start()
    # The best models of the checkpoints after 3 and 6 steps; the model of step 8 is the result.
    assert run.kept() == ["step_000003", "step_000006"]


@pytest.mark.parametrize("dies_at", [4, 6])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, dies_at: int) -> None:
    """Also if the best model is older than the checkpoint and a better one followed."""
    losses = [9, 3, 2, 5, 6]
    straight = Run(tmp_path / "straight", losses=losses, patience=3)
    expected = straight.from_start()
    killed = Run(tmp_path / "killed", losses=losses, patience=3, dies_at=dies_at)
    with pytest.raises(KeyboardInterrupt):
        killed.from_start()
    folder = tmp_path / "killed" / "checkpoints" / "step_000003"
    assert Checkpoints(tmp_path / "killed", keep_last=2).resolve("auto") == folder
    resumed = Run(tmp_path / "killed", losses=losses, patience=3)
    assert resumed.resumed(folder) == expected
    rows = [row for row in killed.metrics.rows if row["step"] <= 3] + resumed.metrics.rows
    assert rows == straight.metrics.rows
    assert resumed.result() == straight.result()
    assert resumed.ranks.weights == straight.ranks.weights


def test_a_run_that_has_stopped_stays_where_it_is(tmp_path: Path) -> None:
    run = Run(tmp_path, losses=[9, 3, 3, 3], patience=2)
    assert run.from_start().step == 6
    again = Run(tmp_path, losses=[9, 3, 3, 3], patience=2)
    assert again.resumed(tmp_path / "checkpoints" / "step_000006").step == 6
    assert again.ranks.updates == []
    assert again.result() == run.result()


def test_resuming_from_another_folder_copies_its_best_model(tmp_path: Path) -> None:
    first = Run(tmp_path / "first", losses=[9, 3, 4, 5, 6])
    first.from_start()
    second = Run(tmp_path / "second", losses=[9, 3, 4, 5, 6])
    second.resumed(tmp_path / "first" / "checkpoints" / "step_000006")
    assert second.result() == _weights_after(first, 2)


def test_an_older_checkpoint_can_be_resumed_after_a_newer_one_was(tmp_path: Path) -> None:
    """Its best model stays: the newer checkpoint may turn out to be damaged."""
    losses = [9, 5, 4, 3, 2, 1]
    killed = Run(tmp_path, losses=losses, dies_at=7)
    with pytest.raises(KeyboardInterrupt):
        killed.from_start()
    older, newer = (tmp_path / "checkpoints" / f"step_00000{step}" for step in (3, 6))
    again = Run(tmp_path, losses=losses)
    assert again.checkpoints.load(newer).improvement.best_step == 6
    assert again.kept() == ["step_000002", "step_000006"]
    fallen_back = Run(tmp_path, losses=losses)
    assert fallen_back.checkpoints.load(older).improvement.best_step == 2
    assert fallen_back.kept() == ["step_000002"]


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    Run(tmp_path, losses=[9, 3, 4]).from_start()
    folder = tmp_path / "checkpoints" / "step_000006"
    with pytest.raises(DataError, match="fingerprint was 'f' and is 'g'"):
        Run(tmp_path, losses=[9, 3, 4], fingerprint="g").resumed(folder)
    for kept in (tmp_path / "best").iterdir():
        kept.rename(tmp_path / "gone")
    with pytest.raises(RequestError, match="step_000002, is gone"):
        Run(tmp_path, losses=[9, 3, 4]).resumed(folder)


def test_a_new_run_removes_the_models_of_an_old_run(tmp_path: Path) -> None:
    Run(tmp_path, losses=[9, 3, 4]).from_start()
    run = Run(tmp_path, losses=[9, 8, 8], eval_every=4)
    assert run.from_start().improvement.best_step == 4
    assert run.kept() == ["step_000004"]


def _weights_after(run: Run, num_steps: int) -> list[int]:
    fresh = SummingRanks()
    for samples in run.ranks.updates[:num_steps]:
        fresh.update(samples)
    return fresh.weights
