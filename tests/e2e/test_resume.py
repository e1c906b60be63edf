"""A run that was killed goes on as if nothing had happened, its scales of rewards included."""

from __future__ import annotations

import functools
import json
import math
import os
import signal

import pytest

from rlhf_ray.algorithms.rewards.task_rewards import merge_moments, reward_moments, reward_scale
from tests.e2e.run_command import without_times

pytestmark = pytest.mark.stack
OPTIONS = (
    "algorithm=ppo",
    "algorithm.kl_coefficient=0.05",
    "algorithm.reference_every=2",
    "algorithm.reference_decay=0.25",
    "algorithm.reward_normalization=running",
    "data.source_column=task",
    "checkpoint.every_steps=2",
)
SCALES = {"sums": 1.0, "words": 100.0}
REWARD = f"""
def scaled(sample):
    return {SCALES}[sample.source] * len(sample.response)
"""


def two_tasks(folder) -> tuple[str, ...]:
    """By turns a prompt of the one and of the other, whose rewards are 100 times as large."""
    rows = [{"prompt": f"Which {task} are {n}?", "task": task} for n in range(8) for task in SCALES]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "scaled.py").write_text(REWARD)
    return (
        f"data.path={folder / 'rows.jsonl'}",
        "data.answer_column=null",
        "data.shuffle=false",
        f"reward.functions=['{folder / 'scaled.py'}:scaled']",
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_and_resumed_equals_uninterrupted(make_run, tmp_path):
    options = (*OPTIONS, *two_tasks(tmp_path), "num_steps=5")
    straight = make_run(*options, output="straight").succeed()

    killed = make_run(*options, output="resumed")
    killed.wait_for_step(3)
    killed.descendants()
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.wait(10)
    # Ray's own agents take a while to notice that their raylet is gone.
    left = [title for title in killed.survivors() if "Agent" not in title]
    assert left == [], "a killed driver leaves processes behind"
    checkpoints = killed.output / "checkpoints"
    assert (checkpoints / "step_000002" / "COMMITTED").is_file()

    resumed = make_run(*options, output="resumed").succeed()
    assert "resumed after step 2" in resumed.text
    expected, found = without_times(straight.metrics()), without_times(resumed.metrics())
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5]
    assert found == expected
    # The runs did something: the policy and the critic have moved.
    assert expected[-1]["kl/reference"] != 0
    assert expected[-1]["value/loss"] != expected[0]["value/loss"]
    assert all(math.isfinite(value) for row in expected for value in row.values())

    _tasks_are_on_one_scale(straight)
    _the_result_is_complete(straight)


def _tasks_are_on_one_scale(run) -> None:
    """What is trained on, and the scales that come from the rewards as they were scored."""
    seen = {task: [] for task in SCALES}
    for step, metrics in enumerate(run.metrics(), start=1):
        rewards = {task: [] for task in SCALES}
        for row in run.rollouts(step):
            (task,) = [task for task in SCALES if task in row["prompt"]]
            rewards[task].append(row["reward"])
        for task, scored in rewards.items():
            seen[task].append(reward_moments(scored))
            scale = reward_scale(functools.reduce(merge_moments, seen[task]))
            assert metrics[f"reward/scale/{task}"] == scale.deviation
            assert metrics[f"reward/shift/{task}"] == scale.mean
            expected = (metrics[f"reward/mean/{task}"] - scale.mean) / scale.deviation
            assert metrics[f"reward/normalized_mean/{task}"] == pytest.approx(expected)
        # Without it returns would be in the hundreds, which the critic would have to reach.
        assert abs(metrics["returns/mean"]) < 3
        assert metrics["value/loss"] < 10
    assert max(metrics["reward/mean/words"] for metrics in run.metrics()) > 100


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
