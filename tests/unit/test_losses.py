"""Waits that bear the loss of a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.losses import Lost, MemberLost, answers_of_rest
from rlhf_ray.testing.fake_waiter import InProcessWaiter
from rlhf_ray.testing.fakes import done


class Losing(InProcessWaiter):
    """A waiter to which workers are lost, one in each wait."""

    def __init__(self, *lost: int) -> None:
        super().__init__()
        self.lost = list(lost)
        self.timeouts: list[float] = []

    def results(self, calls: Sequence[Call], *, phase: str, timeout_s: float) -> list[Any]:
        self.timeouts.append(timeout_s)
        if self.lost:
            member = MemberName(role="generator", rank=self.lost.pop(0))
            raise MemberLost(
                Lost(member=member, what=f"{member} died", reason="killed", phase=phase, step=3)
            )
        return super().results(calls, phase=phase, timeout_s=timeout_s)


def calls() -> list[Call]:
    return [done("generator", rank, signal=10 * rank) for rank in range(4)]


def test_answers_of_the_others_are_kept_in_order():
    asked = calls()
    waiter = Losing(2, 0)
    answers = answers_of_rest(waiter, asked, phase="publish", timeout_s=50.0)
    assert answers == [(asked[1], 10), (asked[3], 30)]
    assert waiter.timeouts[0] == 50.0
    assert all(1.0 <= timeout <= 50.0 for timeout in waiter.timeouts)


def test_without_a_loss_it_is_one_wait():
    waiter = Losing()
    assert [value for _, value in answers_of_rest(waiter, calls(), phase="x", timeout_s=0.5)] == [
        *(0, 10, 20, 30)
    ]
    assert waiter.timeouts == [0.5]


def test_a_loss_elsewhere_is_passed_on():
    with pytest.raises(MemberLost, match=r"generator_7 died \(phase publish, step 3\): killed"):
        answers_of_rest(Losing(7), calls(), phase="publish", timeout_s=1.0)


def test_names_of_incarnations_differ():
    first = MemberName(role="generator", rank=1)
    second = MemberName(role="generator", rank=1, incarnation=2)
    assert (str(first), str(second)) == ("generator_1", "generator_1.2")
    assert first != second
