"""Several engines, ranks and workers at once, generation running ahead of training."""

from __future__ import annotations

import os
import re
import signal

import pytest
from transformers import AutoTokenizer

from rlhf_ray.testing.tiny import tiny_without_round_trip

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(600)]


def test_asynchronous_on_two_of_everything(make_run, tmp_path):
    # Its tokenizer does not give back the ids that it decoded: if text were tokenised again
    # anywhere between engine and learner, the log-probabilities of the two would be of
    # different tokens.
    model = tiny_without_round_trip(tmp_path / "model")
    run = make_run(
        f"model.path={model}",
        "num_steps=5",
        "max_staleness=1",
        "prompts_per_step=4",
        "generation.num_engines=2",
        "generation.num_cpus=0.3",
        "generation.cpu_threads=1",
        "training.num_ranks=2",
        "training.zero_stage=3",
        "training.num_cpus=0.3",
        "training.cpu_threads=1",
        "reward.num_workers=2",
    ).succeed(400)
    metrics = run.metrics()
    assert len(metrics) == 5
    startup = run.startup()
    assert all(seconds > 0 for seconds in startup["parts"].values())
    assert startup["roles"]["generator"]["start_s"] > 0
    assert startup["roles"]["learner"]["start_s"] > 0

    assert max(row["publish/probe_gap_max"] for row in metrics) < 1e-4
    assert [row["publish/version"] for row in metrics] == [1, 2, 3, 4, 5]
    assert metrics[0]["rollout/staleness_max"] == 0
    assert {row["rollout/staleness_max"] for row in metrics[1:]} == {1}
    # At the first step the learner is still the policy that sampled.
    assert metrics[0]["rollout/logprob_gap_max"] < 1e-4

    tokenizer = AutoTokenizer.from_pretrained(run.output / "model")
    rows = [row for step in range(1, 6) for row in run.rollouts(step)]
    assert len(rows) == 5 * 16
    lengths = [
        (len(tokenizer.encode(row["response"], add_special_tokens=False)), row["response_tokens"])
        for row in rows
    ]
    assert any(again != sampled for again, sampled in lengths), "this tokenizer should not"
    for step in range(1, 6):
        versions = {v for row in run.rollouts(step) for v, _ in row["weight_versions"]}
        assert versions <= {step - 2, step - 1}


@pytest.mark.nightly
def test_killed_twice_every_prompt_is_trained_once(make_run):
    """Groups that waited go on; the account is kept by the rollout files."""
    settings = (
        *["num_steps=9", "max_staleness=3", "prompts_per_step=2", "samples_per_prompt=2"],
        *["checkpoint.every_steps=2", "data.shuffle=false", "generation.num_engines=2"],
        *["generation.num_cpus=0.3", "generation.cpu_threads=1"],
    )
    waited = 0
    for killed_at in (3, 6, None):
        run = make_run(*settings, output="run")
        if killed_at is not None:
            run.wait_for_step(killed_at)
            run.descendants()
            os.kill(run.process.pid, signal.SIGKILL)
            run.wait(10)
            assert run.survivors() == []
        else:
            run.succeed(400)
        if killed_at != 3:
            assert f"resumed after step {killed_at - 2 if killed_at else 6}" in run.text
            (number,) = re.findall(
                r"(\d+) of \1 groups that waited in the checkpoint go on", run.text
            )
            waited += int(number)
    assert waited > 0
    prompts = [dict.fromkeys(row["prompt_id"] for row in run.rollouts(s)) for s in range(1, 10)]
    assert [prompt for step in prompts for prompt in step] == [f"e0-r{i}" for i in range(18)]
    assert all(len(run.rollouts(step)) == 4 for step in range(1, 10))
