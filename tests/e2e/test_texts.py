"""Texts learnt beside the rewards (PPO-ptx), with the real engine and trainer."""

from __future__ import annotations

import json
import math

import pytest

from tests.e2e.run_command import without_times

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

TEXTS = ("The cat sat on the mat.", "A second text, a little longer than the first.", "Third.")
LEARNT = "algorithm.ptx_coefficient=1"
FAST = ("num_steps=4", "training.learning_rate=5e-3")


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return f"texts.path={path}", "texts.texts_per_step=3", "texts.max_tokens=16"


def losses(run) -> list[float]:
    found = [row["policy/ptx_loss"] for row in run.metrics()]
    assert all(math.isfinite(loss) for loss in found)
    return found


@pytest.mark.nightly
def test_the_loss_of_the_texts_falls(make_run, texts):
    run = make_run(*texts, *FAST, LEARNT).succeed()
    found = losses(run)
    assert len(found) == 4
    assert found[-1] < 0.9 * found[0]
    assert "from 3 rows, 1 of them longer than texts.max_tokens" in run.text
    assert "tokens of texts per optimiser step" in run.text


@pytest.mark.nightly
def test_the_loss_of_the_texts_stays_with_next_to_no_coefficient(make_run, texts):
    run = make_run(*texts, *FAST, "algorithm.ptx_coefficient=1e-9").succeed()
    assert losses(run)[-1] > 0.95 * losses(run)[0]


@pytest.mark.nightly
def test_a_resumed_run_equals_one_that_was_not_stopped(make_run, texts):
    options = (*texts, LEARNT, "checkpoint.every_steps=2", "algorithm.num_mini_batches=2")
    straight = make_run(*options, "num_steps=4", output="straight").succeed()
    make_run(*options, "num_steps=2", output="resumed").succeed()
    resumed = make_run(*options, "num_steps=4", output="resumed").succeed()
    assert "resumed after step 2" in resumed.text
    assert without_times(resumed.metrics()) == without_times(straight.metrics())
    rows = straight.output.with_name("other.jsonl")
    rows.write_text('{"text": "other"}\n')
    other = make_run(*options[1:], f"texts.path={rows}", "num_steps=5", output="resumed")
    assert other.wait(60) == 2
    assert "texts.path=" in other.text
    assert "resume=never to start from step 0" in other.text
