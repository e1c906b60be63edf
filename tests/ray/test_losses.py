"""Losses of real actors that a run survives: who is told, what is ignored, what takes the place."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import psutil
import pytest
import ray

from rlhf_ray.calls import MemberName
from rlhf_ray.cluster.engines.replacement import Replacements
from rlhf_ray.cluster.resource_plan import ResourcePlan, Resources, RolePlan
from rlhf_ray.cluster.roles.base import Role, call_of
from rlhf_ray.cluster.runtime.supervisor import Member
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.losses import Lost, MemberLost, answers_of_rest
from tests.ray.troupe import NUM_PUPPETS, Troupe
from tests.ray.workers import Puppet

SECOND = MemberName(role="puppet", rank=1)
THIRD = MemberName(role="puppet", rank=1, incarnation=2)


class Keeper:
    """Bears the losses of puppet 1, and ends what is left of it."""

    def __init__(self, troupe: Troupe) -> None:
        self._troupe = troupe
        self.lost: list[Lost] = []
        self.where = ""
        self.words = ""
        self.num_looks = 0

    def replaces(self, member: MemberName) -> bool:
        return member.rank == 1

    def lose(self, lost: Lost) -> str:
        if not self.words:
            self.lost.append(lost)
            self.where = self._troupe.launcher.end(lost.member)
        return self.words

    def look(self) -> None:
        self.num_looks += 1


@pytest.fixture
def keeper(troupe: Troupe) -> Keeper:
    keeper = Keeper(troupe)
    troupe.supervisor.tend(keeper)
    return keeper


def members(troupe: Troupe) -> list[Member]:
    return troupe.members


def replaced(troupe: Troupe, *, start: Any, on_started: Any) -> Replacements:
    """Replacements of puppets, which start as a test says."""
    plan = RolePlan(
        role="puppet", num_actors=NUM_PUPPETS, num_cpus=0.1, num_gpus=0, bundle_indices=(0, 1)
    )
    role = Role(
        resources=Resources(role="puppet", num_actors=NUM_PUPPETS, num_cpus=0.1, num_gpus=0.0),
        actor_class=Puppet,
        settings=lambda rank: {"rank": rank},
        start=start,
    )
    return Replacements(
        role,
        ResourcePlan(roles=(plan,), bundles=({"CPU": 0.2},) * 2, strategy="PACK"),
        troupe.launcher,
        troupe.supervisor,
        on_started=on_started,
        timeout_s=60,
    )


def test_a_death_is_handed_to_whoever_waits(troupe, keeper):
    first, second = members(troupe)
    calls = [
        troupe.call(0, first.handle.answer.remote("a", 1.0)),
        troupe.call(1, second.handle.die.remote(0.2)),
    ]
    with pytest.raises(MemberLost, match=r"^puppet_1 died \(phase update, step 7\)"):
        troupe.wait(*calls)
    answers = answers_of_rest(troupe.supervisor, calls, phase="update", timeout_s=30)
    assert answers == [(calls[0], "a")]
    (lost,) = keeper.lost
    assert lost.member == SECOND
    assert str(second.info.pid) in keeper.where


def test_calls_of_a_lost_worker_come_out_of_a_set_at_once(troupe, keeper):
    first, second = members(troupe)
    pending = troupe.supervisor.pending()
    slow = [troupe.call(1, second.handle.answer.remote(i, 60)) for i in range(3)]
    fast = troupe.call(0, first.handle.answer.remote("a"))
    for call in (*slow, fast):
        pending.add(call)
    assert pending.take_done(phase="generate", timeout_s=30) == [(fast, "a")]
    troupe.supervisor.report_lost(SECOND, what="puppet_1 is silent", reason="a test")
    started = time.monotonic()
    taken = pending.take_done(phase="generate", timeout_s=30)
    assert time.monotonic() - started < 10
    assert dict(taken) == dict.fromkeys(slow, keeper.lost[0])


def test_what_a_lost_worker_answers_late_is_ignored(troupe, keeper):
    """It cannot be ended (its node does not answer), and is continued later."""
    _, second = members(troupe)
    late = troupe.call(1, second.handle.answer.remote("late"))
    assert troupe.wait(late) == ["late"], "the answer is there"
    keeper._troupe.launcher.end = lambda _: "nowhere"
    again = troupe.call(1, second.handle.answer.remote("again"))
    pending = troupe.supervisor.pending()
    pending.add(again)
    ray.wait([again.signal], timeout=30)
    troupe.supervisor.report_lost(SECOND, what="puppet_1 is silent", reason="a test")
    assert pending.take_ready(phase="generate") == [(again, keeper.lost[0])]
    with pytest.raises(MemberLost, match="puppet_1 is silent"):
        troupe.wait(again)


def test_a_loss_that_the_run_does_not_bear_ends_it_with_a_report(troupe, keeper):
    keeper.words = "the budget is used up"
    _, second = members(troupe)
    message = troupe.failure(troupe.call(1, second.handle.die.remote()))
    assert message.splitlines()[0].startswith("puppet_1 died (phase update, step 7): ")
    assert message.splitlines()[0].endswith(". The run cannot go on: the budget is used up")
    assert "--- stacks of puppet_0" in message


def test_a_loss_of_another_worker_ends_the_run(troupe, keeper):
    first, _ = members(troupe)
    assert troupe.failure(troupe.call(0, first.handle.die.remote())).startswith("puppet_0 died")
    assert keeper.lost == []


def test_a_failure_of_a_worker_that_lives_is_no_loss(troupe, keeper):
    _, second = members(troupe)
    message = troupe.failure(troupe.call(1, second.handle.fail.remote()))
    assert message.startswith("puppet_1 failed (phase update, step 7): ValueError")
    assert keeper.lost == []


def test_the_keeper_looks_around_during_waits(troupe, keeper):
    first, _ = members(troupe)
    troupe.wait(troupe.call(0, first.handle.answer.remote(1, 2.5)))
    assert 2 <= keeper.num_looks <= 8


def test_a_replacement_comes_up_in_the_same_bundle(troupe, keeper):
    """The stopped one is killed with its child, and the new one has the next name."""
    _, second = members(troupe)
    child = ray.get(second.handle.spawn.remote(), timeout=30)
    troupe.launcher.remember_processes()
    os.kill(second.info.pid, signal.SIGSTOP)
    joined: list[Member] = []
    replacements = replaced(
        troupe,
        start=lambda members, _: [call_of(m, m.handle.answer.remote(None)) for m in members],
        on_started=joined.append,
    )
    troupe.supervisor.report_lost(SECOND, what="puppet_1 is silent", reason="a test")
    assert not is_running(second.info.pid)
    assert not is_running(child)
    replacements.begin(THIRD)
    deadline = time.monotonic() + 120
    while not (started := replacements.started()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert started == [THIRD]
    (member,) = joined
    assert str(member.name) == "puppet_1.2"
    assert ray.get(member.handle.score.options(num_returns=2).remote(["x"])[0]) == "scored by 1"
    assert member in troupe.supervisor.members
    assert second not in troupe.supervisor.members


def test_a_replacement_that_cannot_start_is_lost_as_well(troupe, keeper):
    troupe.supervisor.report_lost(SECOND, what="puppet_1 is silent", reason="a test")
    replacements = replaced(
        troupe,
        start=lambda members, _: [call_of(m, m.handle.fail.remote()) for m in members],
        on_started=lambda member: pytest.fail(f"{member} has started"),
    )
    replacements.begin(THIRD)
    deadline = time.monotonic() + 120
    while len(keeper.lost) < 2:
        assert replacements.started() == []
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert keeper.lost[1].member == THIRD
    assert "the puppet has failed" in keeper.lost[1].reason


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_run_without_a_keeper_ends_at_a_loss(troupe):
    _, second = members(troupe)
    with pytest.raises(RunFailed) as caught:
        troupe.wait(troupe.call(1, second.handle.die.remote()))
    assert not isinstance(caught.value, MemberLost)
