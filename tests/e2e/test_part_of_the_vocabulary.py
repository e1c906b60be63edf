"""A run that samples from a part of the vocabulary, with every role that scores."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(600)]


def test_all_roles_normalise_over_what_was_sampled_from(make_run):
    run = make_run(
        "num_steps=2",
        "generation.temperature=0.7",
        "generation.top_p=0.9",
        "generation.top_k=20",
        "generation.min_p=0.05",
        # With two optimiser steps the learner scores the batch first.
        "algorithm.num_mini_batches=2",
        "algorithm.kl_coefficient=0.05",
        # Of all tokens that were left: never below 0, as an estimate from the sampled one can be.
        "algorithm.kl_estimator=full",
        "algorithm.correction_weight=token",
    ).succeed(400)
    metrics = run.metrics()
    assert len(metrics) == 2
    # Over the whole vocabulary of an untrained model the gap would be about log(300 / 20).
    assert max(row["rollout/logprob_gap_max"] for row in metrics) < 1e-4
    # Weights of the learner over the engine, right after a publish.
    for row in metrics:
        assert abs(row["correction/weight_max"] - 1) < 1e-3
        assert abs(row["correction/weight_mean"] - 1) < 1e-3
    # Before the first update the reference is the policy.
    assert abs(metrics[0]["kl/reference"]) < 1e-3
    assert metrics[1]["kl/reference"] != 0
    assert 0 < metrics[0]["kl/loss"] < metrics[1]["kl/loss"]
    assert 0 < metrics[0]["policy/entropy"] < 3.0  # log(20), of 20 tokens
    assert max(row["publish/probe_gap_max"] for row in metrics) < 1e-4
