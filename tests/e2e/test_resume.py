"""A run that was killed goes on as if nothing had happened."""

from __future__ import annotations

import json
import math
import os
import signal

import pytest

from tests.e2e.run_command import without_times

pytestmark = pytest.mark.stack
OPTIONS = (
    "algorithm=ppo",
    "algorithm.kl_coefficient=0.05",
    "algorithm.reference_every=2",
    "algorithm.reference_decay=0.25",
    "checkpoint.every_steps=2",
)


@pytest.mark.timeout(900)
def test_killed_and_resumed_equals_uninterrupted(make_run, tiny_model):
    straight = make_run(*OPTIONS, "num_steps=5", output="straight").succeed()

    killed = make_run(*OPTIONS, "num_steps=5", output="resumed")
    killed.wait_for_step(3)
    killed.descendants()
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.wait(10)
    # Ray's own agents take a while to notice that their raylet is gone.
    left = [title for title in killed.survivors() if "Agent" not in title]
    assert left == [], "a killed driver leaves processes behind"
    checkpoints = killed.output / "checkpoints"
    assert (checkpoints / "step_000002" / "COMMITTED").is_file()

    resumed = make_run(*OPTIONS, "num_steps=5", output="resumed").succeed()
    assert "resumed after step 2" in resumed.text
    expected, found = without_times(straight.metrics()), without_times(resumed.metrics())
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5]
    assert found == expected
    # The runs did something: the policy and the critic have moved.
    assert expected[-1]["kl/reference"] != 0
    assert expected[-1]["value/loss"] != expected[0]["value/loss"]
    assert all(math.isfinite(value) for row in expected for value in row.values())

    _the_result_is_complete(straight)


def _the_result_is_complete(run) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(run.output / "model")
    tokenizer = AutoTokenizer.from_pretrained(run.output / "model")
    assert model.get_input_embeddings().weight.shape[0] >= len(tokenizer)
    assert (run.output / "config.yaml").is_file()
    assert len(run.rollouts(5)) == 8
    row = run.rollouts(5)[0]
    assert {"prompt_id", "prompt", "response", "reward", "reward_parts"} <= set(row)
    assert row["weight_versions"] == [[4, row["response_tokens"]]]
    summary = json.loads((run.output / "summary.json").read_text())
    assert summary["num_steps"] == 5
    assert list((run.output / "tensorboard").iterdir())
