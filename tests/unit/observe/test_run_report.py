"""The summary of a run, against numbers worked out by hand."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from rlhf_ray.observe.run_report import summarize, summary_table, windows, write_summary

# Rewards .01 to .20, then a drop at the end.
METRICS = [
    {
        "step": step,
        "reward/mean": 0.0 if step == 20 else step / 100,
        "time/step_s": 2.0,
        "time/generate_s": 1.0,
        "time/update_s": 0.5 if step % 2 else 1.0,
        "tokens/generated": 100.0 * step,
        "publish/probe_gap_max": 1e-6 * step,
        "rollout/failed_groups": 1.0 if step > 18 else 0.0,
    }
    for step in range(1, 21)
]


def test_numbers(tmp_path: Path) -> None:
    summary = summarize(METRICS, result=tmp_path / "model")
    assert (summary.num_steps, summary.first_step, summary.last_step) == (20, 1, 20)
    assert summary.reward_first == pytest.approx(0.02)
    # Steps 11 to 19, and a 0.
    assert summary.reward_last == pytest.approx(1.35 / 10)
    assert (summary.reward_best, summary.reward_best_step) == (0.19, 19)
    assert (summary.total_s, summary.step_s) == (40.0, 2.0)
    assert summary.phase_s == {"generate": 1.0, "update": 0.75}
    # 100 * (1 + ... + 20) tokens in 40 s.
    assert summary.tokens_per_s == pytest.approx(525)
    assert summary.probe_gap_max == pytest.approx(2e-5)
    assert summary.failed_groups == 2


def test_a_short_run_says_how_many_steps_a_mean_is_over(tmp_path: Path) -> None:
    two = summary_table(summarize(METRICS[:2], result=tmp_path))
    assert "reward, first step" in two
    assert "reward, last step" in two
    one = summary_table(summarize(METRICS[:1], result=tmp_path))
    assert "reward, last step" in one
    assert "reward, first" not in one


@pytest.mark.parametrize(
    ("num_steps", "first", "last"),
    [(0, 0, 0), (1, 1, 1), (2, 1, 1), (3, 1, 2), (6, 3, 3), (12, 3, 9), (13, 3, 10), (99, 3, 10)],
)
def test_first_and_last_steps_do_not_overlap(num_steps: int, first: int, last: int) -> None:
    assert windows(num_steps) == (first, last)


def test_the_means_of_six_steps_are_of_three_each(tmp_path: Path) -> None:
    summary = summarize(METRICS[:6], result=tmp_path)
    assert (summary.num_first_steps, summary.num_last_steps) == (3, 3)
    assert (summary.reward_first, summary.reward_last) == (pytest.approx(0.02), pytest.approx(0.05))


def test_a_run_with_a_critic_a_reference_and_stale_rollouts(tmp_path: Path) -> None:
    rows = [
        {**row, "kl/reference": 0.5, "value/loss": 4.0 - row["step"], "rollout/staleness_max": 2.0}
        | ({"policy/learning_rate": 1e-6} if row["step"] > 1 else {})
        | {"time/reference_s": 0.001}
        for row in METRICS[:2]
    ]
    summary = summarize(rows, result=tmp_path)
    assert (summary.value_loss_first, summary.value_loss_last) == (3.0, 2.0)
    assert summary.critic_warmup_steps == 1
    table = " ".join(summary_table(summary).split())
    for words in (
        "KL to the reference, last step 0.5 nats per answer",
        "value loss, first and last steps 3, 2",
        "critic warm-up, policy not trained 1 steps",
        "largest staleness 2 versions",
    ):
        assert words in table
    assert "reference" not in summary.phase_s
    plain = summary_table(summarize(METRICS, result=tmp_path))
    assert not any(word in plain for word in ("KL", "value loss", "warm-up", "staleness"))


def test_table() -> None:
    result = Path("/data/" + "long/" * 30 + "model")
    table = summary_table(summarize(METRICS, result=result))
    *lines, last = table.splitlines()
    cells = dict(
        re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines if "  " in line[1:]
    )
    assert cells["steps"] == "1 to 20"
    assert cells["reward, first 3 steps"] == "0.020"
    assert cells["reward, last 10 steps"] == "0.135"
    assert cells["reward, best step"] == "0.190 (step 19)"
    assert cells["time, all steps"] == "0:40"
    assert cells["generate"] == "1.00 s"
    assert cells["largest probe gap"] == "2.0e-05 nats"
    # A long path stays in one piece, to be copied.
    assert last == f"Result: {result}"


def test_nothing_was_done(tmp_path: Path) -> None:
    summary = summarize([], result=tmp_path)
    assert (summary.num_steps, summary.reward_best, summary.tokens_per_s) == (0, None, None)
    assert "steps" in summary_table(summary)


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    rows = [{"step": 1, "reward/mean": math.nan}, {"step": 2, "reward/mean": 0.5}]
    summary = summarize(rows, result=tmp_path)
    assert (summary.reward_first, summary.reward_best_step) == (0.5, 2)


def test_files(tmp_path: Path) -> None:
    summary = summarize(METRICS, result=tmp_path / "model")
    write_summary(tmp_path, summary)
    assert (tmp_path / "summary.txt").read_text() == summary_table(summary) + "\n"
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["reward_best"] == 0.19
    assert written["phase_s"] == {"generate": 1.0, "update": 0.75}
    assert written["result"] == str(tmp_path / "model")
