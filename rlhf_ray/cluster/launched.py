"""The actors of a plan: created, started, and ended on every way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ray.util.placement_group import PlacementGroup

from rlhf_ray.calls import Call
from rlhf_ray.cluster.resource_plan import ResourcePlan, RolePlan
from rlhf_ray.cluster.runtime.launch import Launcher
from rlhf_ray.cluster.runtime.session import reserved
from rlhf_ray.cluster.runtime.supervisor import Member, Supervisor
from rlhf_ray.config.run import Config

# The actor class of a role's rank, and what its worker is built from: its own part only.
Blueprint = Callable[[str, int], tuple[type, dict[str, Any]]]
# Begins to start the actors of all roles, by role; the calls are waited for together.
Start = Callable[[dict[str, list[Member]], Supervisor], list[Call]]


@contextmanager
def launched(
    config: Config, plan: ResourcePlan, *, blueprint: Blueprint, start: Start
) -> Iterator[tuple[dict[str, list[Member]], Supervisor]]:
    """Every actor of the plan, started, by role; all are ended on the way out, whatever happened.

    Args:
        config: with paths that every node can read.

    Raises:
        RequestError: the cluster is too small.
        RunFailed: a role did not start.
    """
    with (
        reserved_for(config, plan) as group,
        launched_in(group, config, plan.roles, blueprint=blueprint, start=start) as started,
    ):
        yield started


def reserved_for(config: Config, plan: ResourcePlan) -> AbstractContextManager[PlacementGroup]:
    """The plan's bundles; see `runtime.reserved`."""
    wait_s, timeout_s = config.placement.wait_s, config.deadlines.start_s
    return reserved(plan, wait_s=wait_s, timeout_s=timeout_s)


@contextmanager
def launched_in(
    group: PlacementGroup,
    config: Config,
    roles: Sequence[RolePlan],
    *,
    blueprint: Blueprint,
    start: Start,
) -> Iterator[tuple[dict[str, list[Member]], Supervisor]]:
    """As `launched`, some of a plan's roles in bundles that are reserved already."""
    deadlines = config.deadlines
    supervisor = Supervisor()
    launcher = Launcher(group, supervisor, timeout_s=deadlines.start_s, stop_s=deadlines.stop_s)
    orderly = False
    try:
        for role in roles:
            for rank in range(role.num_actors):
                launcher.create(role, rank, *blueprint(role.role, rank))
        by_role: dict[str, list[Member]] = {}
        for member in launcher.members():
            by_role.setdefault(member.name.role, []).append(member)
        calls = start(by_role, supervisor)
        supervisor.results(calls, phase="start", timeout_s=deadlines.start_s)
        launcher.remember_processes()
        yield by_role, supervisor
        orderly = True
    finally:
        launcher.close(orderly=orderly)


def start_ranks(ranks: Sequence[Member], supervisor: Supervisor, *, timeout_s: float) -> list[Call]:
    """Begin to start actors that are the ranks of one model: the first says where it listens."""
    signal = ranks[0].handle.reserve_address.remote()
    first = Call(member=ranks[0].name, signal=signal, payload=None)
    (address,) = supervisor.results([first], phase="start", timeout_s=timeout_s)
    return [
        Call(
            member=member.name,
            signal=member.handle.start.remote(rank, len(ranks), address),
            payload=None,
        )
        for rank, member in enumerate(ranks)
    ]


def collective_timeout_s(config: Config) -> float:
    """How long a collective operation waits for the other ranks.

    A little less than the driver does, so that the ranks say which operation it was.
    """
    deadlines = config.deadlines
    longest = [deadlines.update_s, deadlines.start_s]
    evaluates = config.is_fit or config.is_evaluation
    return 0.9 * max([*longest, deadlines.evaluate_s] if evaluates else longest)
