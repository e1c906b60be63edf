"""Learning rates against numbers computed by hand."""

from __future__ import annotations

import math

import pytest

from rlhf_ray.config.groups.training import TrainingConfig
from rlhf_ray.training.engine.schedule import learning_rate


def rates(total: int, steps: range | None = None, **settings) -> list[float]:
    config = TrainingConfig(learning_rate=8.0, **settings)
    return [
        learning_rate(step, settings=config, total_steps=total) for step in steps or range(total)
    ]


def test_constant_after_warm_up():
    assert rates(6, warmup_steps=4, schedule="constant") == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]


def test_constant_ignores_the_floor():
    assert rates(3, schedule="constant", min_learning_rate_ratio=0.5) == [8.0, 8.0, 8.0]


def test_linear_reaches_its_floor_at_the_last_step():
    # Two of warm-up, then from 8 to 2 in steps 2 to 5.
    found = rates(6, warmup_steps=2, schedule="linear", min_learning_rate_ratio=0.25)
    assert found == pytest.approx([4.0, 8.0, 8.0, 6.0, 4.0, 2.0])


def test_linear_to_zero_without_warm_up():
    assert rates(5, schedule="linear") == pytest.approx([8.0, 6.0, 4.0, 2.0, 0.0])


def test_cosine():
    found = rates(6, warmup_steps=1, schedule="cosine", min_learning_rate_ratio=0.5)
    half = math.sqrt(0.5)
    expected = [8.0, 8.0, 4 + 2 * (1 + half), 6.0, 4 + 2 * (1 - half), 4.0]
    assert found == pytest.approx(expected)


def test_stays_at_the_floor_beyond_the_last_step():
    assert rates(4, range(4, 8), schedule="linear", min_learning_rate_ratio=0.25) == [2.0] * 4


def test_a_run_that_is_all_warm_up():
    assert rates(2, warmup_steps=4, schedule="cosine") == [2.0, 4.0]


def test_a_run_of_one_step_trains():
    assert rates(1, schedule="linear") == [8.0]
