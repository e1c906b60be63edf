"""What adapts from step to step, and its way through a checkpoint."""

from __future__ import annotations

import json
import math

import pytest

from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.driver.adaptive import advance, load_adaptive, save_adaptive, start_adaptive
from rlhf_ray.records import Coefficients

SETTINGS = {
    "fixed": AlgorithmConfig(kl_coefficient=0.1, entropy_coefficient=0.02),
    "adaptive": AlgorithmConfig(kl_coefficient=0.1, kl_controller="adaptive"),
    "scheduled": AlgorithmConfig(
        kl_coefficient=0.1, kl_controller="scheduled", kl_final=0.5, kl_schedule_steps=4
    ),
    "entropy": AlgorithmConfig(entropy_target=1.0, entropy_step=0.25),
}
METRICS = {"kl/reference": 9.0, "policy/entropy": 0.5, "reward/mean": 2.0}


@pytest.mark.parametrize("algorithm", SETTINGS.values(), ids=SETTINGS)
def test_goes_on_from_a_checkpoint_as_if_nothing_had_been(algorithm):
    state = advance(start_adaptive(algorithm), METRICS, num_samples=500)
    restored = load_adaptive(json.loads(json.dumps(save_adaptive(state), allow_nan=False)))
    assert restored == state
    assert advance(restored, METRICS, num_samples=500) == advance(state, METRICS, num_samples=500)


def test_what_is_in_force():
    assert start_adaptive(SETTINGS["fixed"]).coefficients == Coefficients(kl=0.1, entropy=0.02)
    scheduled = advance(start_adaptive(SETTINGS["scheduled"]), METRICS, num_samples=1)
    assert scheduled.coefficients == Coefficients(kl=0.2, entropy=0.0, reward_baseline=2.0)
    entropy = start_adaptive(SETTINGS["entropy"])
    assert entropy.coefficients.entropy == 0.0
    assert advance(entropy, METRICS, num_samples=1).coefficients.entropy == 0.25


def test_a_step_without_a_policy_update_leaves_the_entropy_controller():
    state = start_adaptive(SETTINGS["entropy"])
    moved = advance(state, {"reward/mean": 1.0}, num_samples=1)
    assert moved.entropy == state.entropy
    assert math.isinf(moved.entropy.observed)
    assert moved.baseline.value == 1.0
