"""The order in which roles start, over fakes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.cluster.resource_plan import Resources, plan_resources
from rlhf_ray.cluster.roles.base import Role, Starting, start_in_order
from rlhf_ray.cluster.roles.run_roles import resource_plan, run_roles
from rlhf_ray.config.load import load_config


class Waiter:
    """Logs the calls that are waited for together, with the seconds they have."""

    def __init__(self, log: list[str], takes_s: float = 0.0) -> None:
        self.log, self.timeouts, self._takes_s = log, [], takes_s
        self.seconds: dict[str, float] = {}

    def results(self, calls: Sequence[Call], *, phase: str, timeout_s: float) -> list[Any]:
        assert phase == "start"
        self.timeouts.append(timeout_s)
        time.sleep(self._takes_s)
        self.log.append("wait for " + " ".join(sorted(call.member.role for call in calls)))
        return [self.seconds.get(call.member.role) for call in calls]


def role(name: str, log: list[str], *, starts_after: str | None = None) -> Role:
    def start(members: Sequence[Any], starting: Starting) -> list[Call]:
        log.append(name)
        return [Call(member=MemberName(role=name, rank=0), signal=None, payload=None)]

    return Role(
        resources=Resources(role=name, num_actors=1, num_cpus=0.0, num_gpus=0.0),
        actor_class=object,
        settings=lambda rank: rank,
        start=start,
        starts_after=starts_after,
    )


def started(roles: list[Role], waiter: Any, timeout_s: float = 60.0) -> dict[str, float]:
    plan = plan_resources([role.resources for role in roles], spread=False)
    by_role = {role.name: [] for role in roles}
    return start_in_order(roles, by_role, waiter, plan=plan, timeout_s=timeout_s)


def test_all_roles_start_at_once():
    log: list[str] = []
    started([role("generator", log), role("learner", log)], Waiter(log))
    assert log == ["generator", "learner", "wait for generator learner"]


def test_a_role_on_the_same_gpus_starts_when_the_other_sleeps():
    log: list[str] = []
    learner = role("learner", log, starts_after="generator")
    started([learner, role("generator", log), role("reward", log)], Waiter(log))
    # Everything else starts at once.
    assert log == [
        *["generator", "reward", "wait for generator reward"],
        *["learner", "wait for learner"],
    ]


def test_the_seconds_of_roles_that_measure_their_start_are_returned():
    waiter = Waiter([])
    waiter.seconds = {"generator": 3.0}
    learner = role("learner", [], starts_after="generator")
    assert started([learner, role("generator", [])], waiter) == {"generator": 3.0}


def test_both_turns_have_one_deadline():
    waiter = Waiter([], takes_s=0.05)
    started([role("a", []), role("b", [], starts_after="a")], waiter, timeout_s=10.0)
    assert waiter.timeouts[0] <= 10.0
    assert waiter.timeouts[1] <= 9.96


@pytest.mark.parametrize(
    ("placement", "after"), [("colocated", "generator"), ("disaggregated", None)]
)
def test_the_learner_of_a_colocated_run_starts_after_the_engines(placement, after):
    run = run_roles(load_config(["recipe=demo", f"placement={placement}"]))
    assert run.named("learner").starts_after == after
    engine = run.named("generator").settings(0)
    assert engine.shares_gpus == (placement == "colocated")


class Handle:
    """An actor whose `start` is remembered."""

    def __init__(self) -> None:
        self.started: list[tuple[Any, ...]] = []
        self.start = self
        self.remote = lambda *given: self.started.append(given)


@pytest.mark.parametrize(("stages", "expected"), [(1, [(), ()]), (2, [(0, 2, 3, 4), (1, 5, 6, 7)])])
def test_an_engine_is_told_the_bundles_of_its_workers(stages, expected):
    config = load_config(
        [
            *("recipe=gpu_7b", "generation.num_engines=2", "generation.tensor_parallel_size=2"),
            f"generation.pipeline_parallel_size={stages}",
        ]
    )
    run = run_roles(config)
    members = [
        SimpleNamespace(name=MemberName(role="generator", rank=rank), handle=Handle())
        for rank in (0, 1)
    ]
    starting = Starting(
        by_role={"generator": members}, waiter=Waiter([]), timeout_s=1.0, plan=resource_plan(config)
    )
    run.named("generator").start(members, starting)
    assert [member.handle.started for member in members] == [[((), own)] for own in expected]
