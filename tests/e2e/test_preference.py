"""Preference training as a command: what is learnt, kept and resumed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.e2e.run_command import Run, without_times

pytestmark = pytest.mark.stack


def preferences(folder: Path) -> Path:
    """Sums; the short answer is preferred to a polite one."""
    rows = [
        {
            "prompt": f"What is {a}+{b}?",
            "chosen": str(a + b),
            "rejected": f"Maybe {a + b + 1}, who knows",
        }
        for a in range(8)
        for b in range(8)
    ]
    path = folder / "preferences.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def overrides(rows: Path) -> tuple[str, ...]:
    return (
        "stage=preference",
        f"examples.path={rows}",
        "examples.eval_share=0.2",
        "fit.batch_size=16",
        "fit.num_epochs=2",
        "fit.eval_every=3",
        "checkpoint.every_steps=2",
    )


def summary_of(run: Run) -> dict[str, dict[str, float]]:
    return json.loads((run.output / "summary.json").read_text())


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_what_is_preferred_is_told_apart(make_run, tmp_path):
    run = make_run(*overrides(preferences(tmp_path)))
    run.wait_for_step(1)
    run.descendants()
    run.succeed()
    assert run.survivors() == []
    summary, metrics = summary_of(run), run.metrics()
    # Before the first step the policy is the reference: log 2, and all pairs tied.
    assert metrics[0]["eval/loss"] == pytest.approx(0.693147, abs=1e-5)
    assert metrics[1]["train/loss"] == pytest.approx(0.693147, abs=1e-5)
    assert summary["eval_after"]["accuracy"] >= 0.9
    assert summary["eval_after"]["reward_margin"] > 0.1
    assert "held-out accuracy" in run.text
    assert "answers under the starting policy" in run.text
    assert (run.output / "model" / "config.json").is_file()


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_answers_are_judged_one_by_one(make_run, tmp_path):
    rows = [json.loads(line) for line in preferences(tmp_path).read_text().splitlines()]
    judged = [
        {"prompt": row["prompt"], "answer": row[column], "good": column == "chosen"}
        for row in rows
        for column in ("chosen", "rejected")
    ]
    path = tmp_path / "feedback.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in judged))
    run = make_run(*overrides(path), "preference.loss=kto", "training.num_ranks=2").succeed()
    summary, metrics = summary_of(run), run.metrics()
    # Every answer lies on the reference point.
    assert metrics[0]["eval/loss"] == pytest.approx(0.5, abs=1e-5)
    assert summary["eval_after"]["accuracy"] >= 0.9
    assert summary["eval_after"]["loss"] < 0.48
    assert metrics[-1]["train/reference_point"] >= 0


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_killed_and_resumed_equals_uninterrupted(make_run, tmp_path):
    settings = overrides(preferences(tmp_path))
    straight = make_run(*settings, output="straight").succeed()
    killed = make_run(*settings, output="resumed")
    killed.wait_for_step(3)
    killed.descendants()
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.wait(10)
    resumed = make_run(*settings, output="resumed").succeed()
    assert "resumed after step 2" in resumed.text
    assert f"are those of {resumed.output / 'reference_logprobs.json'}" in resumed.text
    assert without_times(resumed.metrics()) == without_times(straight.metrics())
    # Without the file they are computed anew, before the checkpoint is loaded.
    (resumed.output / "reference_logprobs.json").unlink()
    again = make_run(*settings, "fit.num_epochs=3", output="resumed").succeed()
    kept = json.loads((again.output / "reference_logprobs.json").read_text())
    assert kept == json.loads((straight.output / "reference_logprobs.json").read_text())
