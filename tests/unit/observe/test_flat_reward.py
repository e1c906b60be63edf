"""The warning about rewards that do not vary."""

from __future__ import annotations

import pytest

from rlhf_ray.observe.flat_reward import FlatReward


def told(rewards: list[tuple[float, float]]) -> list[int]:
    """Numbers of the steps in which the warning comes, for means and standard deviations."""
    watch = FlatReward()
    return [
        step
        for step, (mean, std) in enumerate(rewards, start=1)
        if watch.warning({"reward/mean": mean, "reward/std": std})
    ]


@pytest.mark.parametrize("flat", [(0.0, 0.0), (1.0, 0.0), (-250.0, 1e-3)])
def test_it_comes_once_after_five_steps(flat: tuple[float, float]) -> None:
    assert told([(0.3, 0.1), *[flat] * 9, (0.3, 0.1), *[flat] * 9]) == [6]


def test_it_does_not_come_where_rewards_vary_relative_to_their_size() -> None:
    assert told([(1e-6, 1e-7)] * 20) == []
    assert told([*[(0.0, 0.0)] * 4, (0.1, 0.2)] * 5) == []


def test_steps_without_rewards_are_no_flat_steps() -> None:
    watch = FlatReward()
    assert [watch.warning({}) for _ in range(9)] == [None] * 9


def test_the_words() -> None:
    watch = FlatReward()
    last = [watch.warning({"reward/mean": 0.0, "reward/std": 0.0}) for _ in range(5)][-1]
    assert last is not None
    assert "has not varied for 5 steps (mean 0, standard deviation 0)" in last
    assert "rollouts/" in last
