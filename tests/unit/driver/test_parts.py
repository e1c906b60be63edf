"""Failure budget, checkpoints, identity, metrics of a batch."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_ray.config.errors import RequestError, RunFailed
from rlhf_ray.driver.checkpoint_state import read_state
from rlhf_ray.driver.checkpoints import Checkpoints
from rlhf_ray.driver.resume_changes import check_identity
from rlhf_ray.driver.rollouts.failure_budget import FailureBudget
from rlhf_ray.driver.rollouts.pipeline import Batch
from rlhf_ray.driver.updates.step_metrics import batch_metrics
from rlhf_ray.records import FailureKind, SampleFailure
from rlhf_ray.records.plain_prompts import plain_prompts, prompts_from_plain
from rlhf_ray.testing.fakes import make_group, make_prompt

FAILURE = SampleFailure(
    prompt_id="p", sample_index=3, kind=FailureKind.REWARD_TIMEOUT, message="10 s are over"
)


class TestFailureBudget:
    def test_the_share_is_of_a_hundred_groups(self):
        budget = FailureBudget(0.02)
        budget.record([FAILURE])
        budget.record([FAILURE])
        with pytest.raises(
            RunFailed, match=r"3 of the last 3 groups failed.*allows 2 of 100.*10 s"
        ):
            budget.record([FAILURE])

    def test_old_failures_are_forgotten(self):
        budget = FailureBudget(0.01)
        for _ in range(5):
            budget.record([FAILURE])
            for _ in range(100):
                budget.record([])

    def test_nothing_allowed_and_everything_allowed(self):
        with pytest.raises(RunFailed):
            FailureBudget(0.0).record([FAILURE])
        unlimited = FailureBudget(1.0)
        for _ in range(300):
            unlimited.record([FAILURE])

    def test_a_resumed_budget_goes_on_counting(self):
        first = FailureBudget(0.02)
        first.record([FAILURE])
        first.record([FAILURE])
        second = FailureBudget(0.02)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        with pytest.raises(RunFailed, match="3 of the last 3"):
            second.record([FAILURE])


class TestCheckpoints:
    def commit(self, checkpoints: Checkpoints, step: int) -> Path:
        folder = checkpoints.begin(step)
        checkpoints.commit(folder, {"step": step})
        return folder

    def test_the_last_committed_one_is_resumed(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, keep_last=5)
        assert checkpoints.resolve("auto") is None
        self.commit(checkpoints, 9)
        last = self.commit(checkpoints, 10)
        checkpoints.begin(11)  # killed before it was committed
        assert checkpoints.resolve("auto") == last
        assert read_state(last) == {"step": 10}
        assert checkpoints.resolve("never") is None
        assert checkpoints.resolve(str(last)) == last

    def test_a_path_without_marker_is_refused(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, keep_last=5)
        folder = checkpoints.begin(3)
        with pytest.raises(RequestError, match="COMMITTED is missing"):
            checkpoints.resolve(str(folder))

    def test_the_oldest_are_removed(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, keep_last=2)
        for step in (1, 2, 3):
            self.commit(checkpoints, step)
        names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert names == ["step_000002", "step_000003"]

    def test_what_a_killed_save_left_is_replaced(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, keep_last=2)
        (checkpoints.begin(4) / "half.bin").write_text("x")
        folder = self.commit(checkpoints, 4)
        assert not (folder / "half.bin").exists()


def test_a_checkpoint_of_another_run_is_refused_by_the_settings_that_differ():
    there = {"seed": 0, "data.path": "a.jsonl", "prompts_per_step": 8}
    here = {"seed": 1, "data.path": "a.jsonl", "prompts_per_step": 4}
    with pytest.raises(RequestError, match="seed=0 there, 1 here; prompts_per_step=8 there, 4"):
        check_identity(Path("step_000001"), there, here)
    check_identity(Path("step_000001"), there, dict(there))


def test_batch_metrics_by_hand():
    groups = [
        make_group(make_prompt(0), (0, 1), version=3, rewards=[1.0, 0.0]),
        make_group(make_prompt(1), (0, 1), version=2, rewards=[1.0, 1.0]),
    ]
    batch = Batch(
        groups=tuple(groups),
        summaries=tuple(group.summary() for group in groups),
        failures=(FAILURE,),
        num_dropped=1,
        generate_s=0.0,
        score_s=0.0,
    )
    metrics = batch_metrics(batch, version=4)
    assert metrics == {
        "reward/mean": 0.75,
        "reward/std": pytest.approx(math.sqrt((3 * 0.25**2 + 0.75**2) / 3)),
        "reward/fake": 0.75,
        "response/length_mean": 2.0,
        "response/truncated_fraction": 0.0,
        "rollout/staleness_max": 2.0,
        "rollout/failed_groups": 1.0,
        "tokens/generated": 8.0,
    }


def test_prompts_in_a_checkpoint_are_the_same_again():
    tools = ({"type": "function", "function": {"name": "add"}},)
    messages = ({"role": "user", "content": "prompt 3"},)
    prompt = replace(make_prompt(3), messages=messages, tools=tools)
    plain = json.loads(json.dumps(plain_prompts([prompt])))
    assert prompts_from_plain(plain) == [prompt]
    del plain[0]["messages"], plain[0]["tools"]
    assert prompts_from_plain(plain) == [make_prompt(3)], "from a release without scorers"
