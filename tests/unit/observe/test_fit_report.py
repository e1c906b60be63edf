"""Summary of a stage that trains on examples, against numbers computed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

from rlhf_ray.observe.fit_report import fit_table, summarize_fit, write_fit_summary

RESULT = Path("/runs/sft/model")


def step(number: int, loss: float, **more: float) -> dict[str, float]:
    row = {"step": float(number), "train/loss": loss, "train/epochs": number / 2}
    return {**row, "tokens/trained": 30.0, "time/update_s": 2.0, "time/step_s": 3.0, **more}


METRICS = [
    {"step": 0.0, "eval/loss": 2.0, "eval/perplexity": 7.4, "time/step_s": 1.0},
    step(1, 1.9),
    step(2, 1.5, **{"eval/loss": 1.0, "eval/perplexity": 2.7}),
    step(3, 1.2, **{"eval/loss": 1.1, "eval/perplexity": 3.0}),
]


def summary_of(metrics: list[dict[str, float]], *, best_step: int | None, planned_steps: int = 3):
    return summarize_fit(
        metrics,
        stage="sft",
        planned_steps=planned_steps,
        num_held_out=3,
        best_step=best_step,
        result=RESULT,
    )


def test_the_result_is_the_best_model() -> None:
    summary = summary_of(METRICS, best_step=2)
    assert (summary.num_steps, summary.epochs, summary.stopped_early) == (3, 1.5, False)
    assert (summary.loss_first, summary.loss_last) == (1.9, 1.2)
    assert (summary.perplexity_before, summary.perplexity_after) == (7.4, 2.7)
    assert summary.eval_before == {"loss": 2.0, "perplexity": 7.4}
    assert summary.eval_after == {"loss": 1.0, "perplexity": 2.7}
    assert (summary.trained_tokens, summary.tokens_per_s, summary.total_s) == (90, 15.0, 10.0)


def test_the_result_is_the_last_model() -> None:
    summary = summary_of(METRICS, best_step=None, planned_steps=5)
    assert summary.perplexity_after == 3.0
    assert summary.stopped_early
    assert "3 of 5, stopped early" in fit_table(summary)


def test_nothing_is_held_out() -> None:
    summary = summary_of([step(1, math.nan)], best_step=None, planned_steps=1)
    assert summary.perplexity_before is summary.perplexity_after is summary.loss_first is None
    assert summary.eval_before == summary.eval_after == {}
    assert "held-out" not in fit_table(summary)


def test_the_files(tmp_path: Path) -> None:
    write_fit_summary(tmp_path, summary_of(METRICS, best_step=2))
    saved = json.loads((tmp_path / "summary.json").read_text())
    assert saved["perplexity_after"] == 2.7
    assert saved["best_step"] == 2
    table = (tmp_path / "summary.txt").read_text().splitlines()
    assert "  held-out perplexity   7.4000 before, 2.7000 after" in table
    assert "  held-out rows         3" in table
    assert saved["num_held_out"] == 3
    assert "  model                 step 2, the best" in table
    assert table[-1] == f"Result: {RESULT}"


def test_a_reward_model_reads_tokens_and_a_tie_has_no_calibration() -> None:
    metrics = [
        {"step": 0.0, "eval/calibration_error": 0.0, "eval/margin": 0.0, "time/step_s": 1.0},
        step(1, 0.5, **{"eval/calibration_error": 0.0, "eval/margin": 0.3}),
    ]
    summary = summarize_fit(
        metrics,
        stage="reward_model",
        planned_steps=1,
        num_held_out=3,
        best_step=None,
        result=RESULT,
    )
    table = " ".join(fit_table(summary).split())
    assert "held-out calibration error n/a (ties) before, 0.0000 after" in table
    assert "tokens read, prompts included 30" in table
    assert "tokens learnt from 90" in " ".join(fit_table(summary_of(METRICS, best_step=2)).split())
