"""Controllers from step to step, and through a checkpoint."""

from __future__ import annotations

import json
import math

import pytest

from rlhf_ray.config.groups.algorithm import AlgorithmConfig
from rlhf_ray.driver.rollouts.batch import Batch
from rlhf_ray.driver.updates.controllers import Controllers
from rlhf_ray.records import Coefficients, GroupSummary

SETTINGS = {
    "fixed": AlgorithmConfig(kl_coefficient=0.1, entropy_coefficient=0.02),
    "adaptive": AlgorithmConfig(kl_coefficient=0.1, kl_controller="adaptive"),
    "scheduled": AlgorithmConfig(
        kl_coefficient=0.1, kl_controller="scheduled", kl_final=0.5, kl_schedule_steps=4
    ),
    "entropy": AlgorithmConfig(entropy_target=1.0, entropy_step=0.25),
    "scales": AlgorithmConfig(reward_normalization="running"),
}


def batch(*, replayed: int = 0, **rewards: list[float]) -> Batch:
    """One group of each task, the last ones replayed."""
    summaries = tuple(
        GroupSummary(
            prompt_id=task,
            stream_index=index,
            source=task,
            sample_lengths=(2,) * len(values),
            response_lengths=(1,) * len(values),
            finish_reasons=("stop",) * len(values),
            rewards=tuple(values),
            reward_parts={},
            oldest_version=0,
            newest_version=0,
            failures=(),
        )
        for index, (task, values) in enumerate(rewards.items())
    )
    return Batch(
        groups=tuple(rewards),
        summaries=summaries,
        failures=(),
        num_dropped=0,
        generate_s=0.0,
        score_s=0.0,
        num_replayed=replayed,
    )


def step_on(state: Controllers, batch: Batch) -> Controllers:
    return state.observe(batch).advance(METRICS, num_samples=500)


METRICS = {"kl/reference": 9.0, "policy/entropy": 0.5, "reward/mean": 2.0}


@pytest.mark.parametrize("algorithm", SETTINGS.values(), ids=SETTINGS)
def test_a_restored_controller_goes_on_identically(algorithm):
    state = step_on(Controllers.start(algorithm), batch(sums=[0.1, 0.7], words=[3.0, 90.0]))
    restored = Controllers.load(json.loads(json.dumps(state.state_dict(), allow_nan=False)))
    assert restored == state
    following = batch(words=[7.3], sums=[1 / 3])
    assert step_on(restored, following) == step_on(state, following)


def test_a_checkpoint_of_a_release_without_normalisation():
    saved = Controllers.start(SETTINGS["fixed"]).state_dict()
    del saved["scales"]
    assert Controllers.load(saved) == Controllers.start(SETTINGS["fixed"])


def test_coefficients_of_the_next_step():
    assert Controllers.start(SETTINGS["fixed"]).coefficients == Coefficients(kl=0.1, entropy=0.02)
    scheduled = Controllers.start(SETTINGS["scheduled"]).advance(METRICS, num_samples=1)
    assert scheduled.coefficients == Coefficients(kl=0.2, entropy=0.0, reward_baseline=2.0)
    entropy = Controllers.start(SETTINGS["entropy"])
    assert entropy.coefficients.entropy == 0.0
    assert entropy.advance(METRICS, num_samples=1).coefficients.entropy == 0.25


def test_a_step_without_a_policy_update_leaves_the_entropy_controller():
    state = Controllers.start(SETTINGS["entropy"])
    moved = state.advance({"reward/mean": 1.0}, num_samples=1)
    assert moved.entropy == state.entropy
    assert math.isinf(moved.entropy.observed)
    assert moved.baseline.value == 1.0


def scales_of(mode: str, *batches: Batch) -> dict[str, tuple[float, float]]:
    """Mean and deviation that scale the last batch, by task."""
    state = Controllers.start(AlgorithmConfig(reward_normalization=mode))
    for one in batches:
        state = step_on(state, one)
    scales = state.coefficients.reward_scales
    return {task: (scale.mean, scale.deviation) for task, scale in scales.items()}


FIRST, SECOND = batch(sums=[1.0, 3.0], words=[100.0]), batch(sums=[5.0, 7.0])


def test_a_batch_is_normalised_by_all_rewards_including_its_own():
    assert scales_of("none", FIRST, SECOND) == {}
    assert scales_of("batch", FIRST, SECOND) == {"sums": (6.0, pytest.approx(2**0.5))}
    # 1, 3, 5, 7; the task of one reward has no deviation.
    running = {"sums": (4.0, pytest.approx((20 / 3) ** 0.5)), "words": (100.0, 1.0)}
    assert scales_of("running", FIRST, SECOND) == running


def test_replayed_rewards_are_counted_once():
    again = batch(sums=[5.0, 7.0], words=[100.0], replayed=1)
    assert scales_of("running", FIRST, again)["words"] == (100.0, 1.0)
    assert scales_of("running", FIRST, again, batch(words=[101.0]))["words"] == (
        100.5,
        pytest.approx(0.5**0.5),
    )
    # Mode "batch" counts replayed rewards too, because they are trained on.
    assert set(scales_of("batch", again)) == {"sums", "words"}
