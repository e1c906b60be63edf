"""The published methods by their files: none is switched off by its own defaults."""

from __future__ import annotations

import pytest

from rlhf_ray.config.groups.algorithm import OldLogprobsFrom
from rlhf_ray.config.keys.choices import conf_dir
from rlhf_ray.config.load import load_config

METHODS = sorted(path.stem for path in (conf_dir() / "algorithm").glob("*.yaml"))
# Losses that need ratios other than 1: their sources take these steps per batch.
STEPS = {
    "cispo": 16,
    "clip_cov": 8,
    "dapo": 16,
    "gmpo": 8,
    "gspo": 4,
    "gspo_token": 4,
    "kl_cov": 8,
    "sapo": 4,
}


def steps_per_batch(method: str) -> int:
    algorithm = load_config(["recipe=demo", f"algorithm={method}"]).algorithm
    return algorithm.num_epochs * algorithm.num_mini_batches


@pytest.mark.unit_slow
@pytest.mark.parametrize("method", METHODS)
def test_steps_per_batch_are_those_of_the_source(method):
    assert steps_per_batch(method) == STEPS.get(method, 1)


@pytest.mark.parametrize("method", STEPS)
def test_ratios_can_differ_from_one(method):
    config = load_config(["recipe=demo", f"algorithm={method}"])
    assert config.old_logprobs_from is not OldLogprobsFrom.LEARNER_IN_UPDATE
