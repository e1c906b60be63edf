"""Rollout selection with the real engine and trainer; what it promises of a resumed run."""

from __future__ import annotations

import math
import os
import signal

import pytest

from tests.e2e.run_command import without_times

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900), pytest.mark.nightly]

# Most responses of the untrained model are far from 6 characters: many groups are without variance.
REWARD = "reward.functions=[{path: length, arguments: {target: 6, slack: 3}}]"
REPRODUCIBLE = (
    REWARD,
    "num_steps=5",
    "checkpoint.every_steps=2",
    "samples_per_prompt=2",
    "rollout_selection.dynamic=true",
    "rollout_selection.max_replacements_per_step=3",
    "rollout_selection.curriculum=true",
    "rollout_selection.success_reward=0.5",
    "rollout_selection.overlong_buffer_tokens=3",
    "rollout_selection.overlong_filter=true",
    "rollout_selection.replay_groups_per_step=1",
)


def test_killed_and_resumed_equals_uninterrupted(make_run):
    straight = make_run(*REPRODUCIBLE, output="straight").succeed()
    killed = make_run(*REPRODUCIBLE, output="resumed")
    killed.wait_for_step(3)
    killed.descendants()
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.wait(10)
    killed.survivors()

    resumed = make_run(*REPRODUCIBLE, output="resumed").succeed()
    assert "resumed after step 2" in resumed.text
    expected, found = without_times(straight.metrics()), without_times(resumed.metrics())
    assert found == expected
    # Something was there to be resumed.
    assert sum(row["rollout_selection/replaced_groups"] for row in expected) > 0
    assert max(row["rollout_selection/overlong_penalty_mean"] for row in expected) > 0
    assert sum(row["rollout_selection/replayed_groups"] for row in expected[2:]) > 0
    assert all(math.isfinite(value) for row in expected for value in row.values())
    for step in range(1, 6):
        assert [row["prompt_id"] for row in resumed.rollouts(step)] == [
            row["prompt_id"] for row in straight.rollouts(step)
        ]


def test_the_first_to_finish_and_replay(make_run):
    run = make_run(
        # Responses of up to 40 tokens differ in length, and so do their rewards.
        "reward.functions=[{path: length, arguments: {target: 40}}]",
        "num_steps=5",
        "rollout_selection.oversample=2",
        "rollout_selection.replay_groups_per_step=1",
        "generation.max_response_tokens=40",
        "generation.max_num_batched_tokens=1024",
    ).succeed()
    metrics = run.metrics()
    assert len(metrics) == 5
    # Four prompts are started for two, and the engine really works on nothing else afterwards.
    gone = [
        row["rollout_selection/cancelled_groups"] + row["rollout_selection/spare_groups"]
        for row in metrics
    ]
    assert gone == [2.0] * 5
    assert sum(row["rollout_selection/replayed_groups"] for row in metrics) > 0
    assert max(row["publish/probe_gap_max"] for row in metrics) < 1e-4
    prompts = [row["prompt_id"] for step in range(1, 6) for row in run.rollouts(step)]
    # Two groups of four samples a step, fresh ones alone, none twice.
    assert len(prompts) == 5 * 8
    assert len(set(prompts)) == 5 * 2
