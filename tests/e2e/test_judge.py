"""A language model judges in a run: one of its own, and the policy itself."""

from __future__ import annotations

import pytest

from rlhf_ray.testing.tiny import tiny_that_says

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900), pytest.mark.nightly]

JUDGED = (
    "reward.judge.pattern='([0-9])'",
    "reward.judge.max_prompt_tokens=800",
    "reward.judge.max_judgement_tokens=8",
    "reward.judge.kv_cache_gib=0.1",
    "reward.judge.weight=2",
    "num_steps=2",
)


@pytest.mark.parametrize("way", ["own", "policy"])
def test_judgements_are_a_part_of_the_reward(way, make_run, tmp_path):
    seven = tiny_that_says(tmp_path / "seven", "7")
    judge = f"reward.judge.model={seven}" if way == "own" else "reward.judge.model=policy"
    policy = [f"model.path={seven}"] if way == "policy" else []
    run = make_run(judge, *JUDGED, *policy).succeed(700)
    rows = [row for step in (1, 2) for row in run.rollouts(step)]
    assert len(rows) == 16
    for row in rows:
        parts = row["reward_parts"]
        # The score 7 of the range from 1 to 10.
        assert parts["judge"] == pytest.approx(6 / 9)
        assert row["reward"] == pytest.approx(parts["length"] + 2 * parts["judge"])
    assert [row["reward/judge"] for row in run.metrics()] == [pytest.approx(6 / 9)] * 2
