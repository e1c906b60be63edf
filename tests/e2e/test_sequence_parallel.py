"""Runs whose ranks compute every sample together: the numbers of one rank for each role."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1500), pytest.mark.nightly]

PPO = (
    "algorithm=ppo",
    "algorithm.kl_coefficient=0.05",
    "critic.learning_rate=1e-3",
    # The second step compares the weights that the first one made.
    "num_steps=2",
    *(f"{role}.num_cpus=0.1" for role in ("training", "critic", "reference")),
    *(f"{role}.cpu_threads=1" for role in ("training", "critic", "reference")),
    *(f"{role}.dtype=float32" for role in ("training", "critic", "reference")),
)
GROUPS = (
    *(f"{role}.num_ranks=2" for role in ("training", "critic", "reference")),
    *(f"{role}.sequence_parallel_size=2" for role in ("training", "critic", "reference")),
    # Half of the longest sample, of 56 tokens.
    *(f"{role}.max_tokens_per_micro_batch=28" for role in ("training", "critic", "reference")),
    "training.zero_stage=3",
    "critic.zero_stage=1",
)
COMPARED = (
    *("reward/mean", "kl/reference", "policy/loss", "policy/grad_norm", "policy/entropy"),
    *("value/loss", "value/grad_norm", "tokens/trained", "rollout/logprob_gap_max"),
)


def test_groups_of_ranks_give_the_numbers_of_one_rank(make_run):
    alone = make_run(*PPO, output="alone").succeed(600)
    together = make_run(*PPO, *GROUPS, output="together").succeed(600)
    assert "training.num_ranks = 2 / training.sequence_parallel_size = 2" in together.text
    for one, two in zip(alone.metrics(), together.metrics(), strict=True):
        for name in COMPARED:
            assert two[name] == pytest.approx(one[name], rel=1e-4, abs=2e-5), name
        assert two["publish/probe_gap_max"] < 1e-3


def test_heads_that_cannot_be_divided_are_refused_before_any_worker(make_run):
    groups = ("training.num_ranks=3", "training.sequence_parallel_size=3", "prompts_per_step=3")
    run = make_run(*groups)
    assert run.wait(120) == 2
    assert "training.sequence_parallel_size=3: model.path is" in run.text
    assert "attention heads" in run.text
