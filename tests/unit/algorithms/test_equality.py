"""Equal rewards, up to rounding, in every place that would magnify their difference."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from rlhf_ray.algorithms.advantages.group_advantages import group_advantages
from rlhf_ray.algorithms.advantages.process_rewards import process_advantages
from rlhf_ray.algorithms.advantages.rloo import rloo_advantages
from rlhf_ray.algorithms.advantages.whitening import whiten
from rlhf_ray.algorithms.equality import BFLOAT16_ULP, are_equal, reaches
from rlhf_ray.algorithms.rewards.task_rewards import reward_moments, reward_scale
from tests.unit.algorithms import ground_truth

F64 = torch.float64
STEPS = (0.1, 0.2, 0.3, 0.7, 1.0, -0.1)


def normalized(rewards: list[float], estimator: str, **settings: float) -> list[float]:
    return group_advantages(
        torch.tensor(rewards, dtype=F64),
        torch.tensor([len(rewards)]),
        normalize_by_std=True,
        std_epsilon=1e-6,
        std_estimator=estimator,
        **settings,
    ).tolist()


@pytest.mark.parametrize(
    ("values", "tolerance", "equal"),
    [
        ([], 0.0, True),
        ([3.0], 0.0, True),
        ([0.0, 0.0], 0.5, True),
        ([0.0, 1e-30], 0.5, False),
        ([0.1 + 0.2, 0.3], 0.0, True),
        ([1.0, 1.0 + BFLOAT16_ULP], BFLOAT16_ULP, True),
        ([1.0, 1.01], BFLOAT16_ULP, False),
        ([-1.0, 1.0], 0.5, False),
        ([1.0, 1.001], 1e-4, False),
    ],
)
def test_are_equal(values, tolerance, equal):
    assert are_equal(values, tolerance) is equal
    assert are_equal(torch.tensor(values, dtype=F64), tolerance) is equal


def test_leave_one_out_with_equal_others():
    advantages = normalized([0.1, 0.1, 0.1, 1.0], "leave_one_out")
    assert advantages[3] == pytest.approx(0.675)
    assert max(map(abs, advantages)) == advantages[3]


@pytest.mark.parametrize("size", [3, 4])
def test_no_group_has_a_leave_one_out_advantage_of_rounding(size):
    for group in itertools.product(STEPS, repeat=size):
        advantages = normalized(list(group), "leave_one_out")
        expected = ground_truth.leave_one_out_std_advantages(list(group), 1e-6)
        assert advantages == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert max(map(abs, advantages)) < 100, group


@pytest.mark.parametrize("estimator", ["unbiased", "biased", "leave_one_out"])
@pytest.mark.parametrize("value", [0.3, 1.0, -7.25, 1e4])
def test_one_step_of_bfloat16_is_no_signal(estimator, value):
    rounded = torch.tensor(value, dtype=torch.bfloat16)
    above = torch.nextafter(rounded, torch.tensor(math.inf, dtype=torch.bfloat16))
    rewards = [float(rounded)] * 3 + [float(above)]
    assert rewards[0] != rewards[3]
    assert normalized(rewards, estimator) == [0.0] * 4
    # Exact rewards may differ by less: the tolerance is a setting.
    assert max(map(abs, normalized(rewards, estimator, tolerance=1e-6))) > 0


def test_without_a_division_small_differences_stay_small_differences():
    rewards = torch.tensor([1.0, 1.0, 1.004], dtype=F64)
    expected = [-0.002, -0.002, 0.004]
    assert rloo_advantages(rewards, torch.tensor([3])).tolist() == pytest.approx(expected)
    centred = group_advantages(rewards, torch.tensor([3]), normalize_by_std=False, std_epsilon=1e-6)
    assert centred.abs().max().item() == pytest.approx(0.008 / 3)


def test_steps_and_whitening_and_task_scales():
    almost = torch.tensor([1.0, 1.0 + BFLOAT16_ULP, 1.0], dtype=F64)
    mask = torch.ones(3, dtype=torch.bool)
    steps = process_advantages(
        almost, mask, torch.tensor([2, 1]), mask, torch.tensor([2]), std_epsilon=1e-6
    )
    assert steps.tolist() == [0.0] * 3
    assert whiten(almost, mask).abs().max().item() < BFLOAT16_ULP
    assert reward_scale(reward_moments(almost.tolist())).deviation == 1.0


def test_a_sum_of_parts_reaches_its_threshold():
    assert 0.1 * 3 + 0.7 * 1 == 1.0
    tenths = sum([0.1] * 10)
    assert tenths < 1.0
    assert reaches(tenths, 1.0)
    assert reaches(-1.0, -1.0)
    assert not reaches(0.999999, 1.0)
    assert not reaches(-1e-6, 0.0)
