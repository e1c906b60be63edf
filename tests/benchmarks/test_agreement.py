"""The comparison with TRL's trainers: what it calls agreement, and that both get the same."""

from __future__ import annotations

import json
import math
import sys

import pytest

from benchmarks import agreement
from benchmarks.agreement_work import (
    NUM_STEPS,
    SAMPLES_PER_STEP,
    SEED,
    STAGES,
    in_order,
    neutral_rows,
    overrides,
    own_row,
    trl_row,
)
from rlhf_ray.config.load import load_config
from rlhf_ray.data.prompts.order import RowOrder
from rlhf_ray.driver.fit.steps import FitSteps

LOSSES = [2.0 - 0.05 * step for step in range(NUM_STEPS)]


def with_step(number: int, loss: float) -> list[float]:
    return [*LOSSES[: number - 1], loss, *LOSSES[number:]]


def test_losses_within_the_tolerance_agree():
    compared = agreement.compare(LOSSES, [loss + 9e-4 for loss in LOSSES])
    assert compared["agrees"]
    assert compared["largest_difference"] == pytest.approx(9e-4)
    assert compared["own"] == LOSSES


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("number", [1, 7, NUM_STEPS])
def test_one_step_off_by_twice_the_tolerance_is_found(number, sign):
    off = with_step(number, LOSSES[number - 1] + sign * 2e-3)
    for own, trl in ((LOSSES, off), (off, LOSSES)):
        compared = agreement.compare(own, trl)
        assert not compared["agrees"]
        assert compared["step"] == number
        assert compared["largest_difference"] == pytest.approx(2e-3)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_agrees_with_nothing(loss):
    off = with_step(5, loss)
    for own, trl in ((LOSSES, off), (off, LOSSES), (off, off)):
        assert not agreement.compare(own, trl)["agrees"]


@pytest.mark.parametrize(("own", "trl"), [(LOSSES[:-1], LOSSES), (LOSSES[1:], LOSSES[1:])])
def test_steps_that_are_missing_are_no_agreement(own, trl):
    with pytest.raises(ValueError, match="20 wanted"):
        agreement.compare(own, trl)


@pytest.mark.parametrize(("gap", "status"), [(0.0, 0), (2e-3, 1)])
def test_one_stage_that_disagrees_is_the_exit_status(gap, status, tmp_path, monkeypatch):
    last = [*LOSSES[:-1], LOSSES[-1] + gap]
    found = dict.fromkeys(STAGES, (LOSSES, LOSSES)) | {"reward_model": (LOSSES, last)}
    monkeypatch.setattr(agreement, "stage_losses", found.__getitem__)
    monkeypatch.setattr(agreement, "versions", dict)
    file = tmp_path / "new" / "agreement.json"
    monkeypatch.setattr(sys, "argv", ["agreement", "--output", str(file)])
    assert agreement.main() == status
    report = json.loads(file.read_text())
    assert set(report["stages"]) == set(STAGES)
    assert [report["stages"][stage]["agrees"] for stage in STAGES] == [True, status == 0, True]
    assert report["stages"]["reward_model"]["trl"] == last


def test_trl_gets_the_rows_in_the_order_of_the_steps():
    rows = neutral_rows()
    steps = FitSteps(
        rows,
        order=RowOrder("samples", num_rows=len(rows), fingerprint="f", seed=SEED, shuffle=True),
        spread=lambda taken: taken,
        samples_per_step=SAMPLES_PER_STEP,
        num_epochs=2,
        max_steps=NUM_STEPS,
    )
    taken = [row for step in range(NUM_STEPS) for row in steps.next(step).per_rank]
    assert in_order(rows) == taken
    # More than an epoch, and not in the order of the file.
    assert len(taken) > len(rows)
    assert taken[: len(rows)] != rows


@pytest.mark.parametrize("stage", STAGES)
def test_both_get_the_same_texts_of_a_row(stage):
    for row in neutral_rows():
        own, trl = own_row(stage, row), trl_row(stage, row)
        assert own["prompt"] == trl["prompt"]
        for mine, theirs in (("answer", "completion"), ("chosen", "chosen")):
            if mine in own:
                assert trl[theirs] == [{"role": "assistant", "content": own[mine]}]
        assert own.get("margin") == trl.get("margin")


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_takes_what_it_is_told(stage, tmp_path):
    config = load_config(overrides(stage, tmp_path / "model", tmp_path / "rows.jsonl"))
    assert config.stage.name == stage
    assert config.training.dtype == "float32"
    assert config.examples.shuffle
