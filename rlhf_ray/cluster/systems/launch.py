"""The actors of roles: created where the plan says, started together, ended on every way out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from ray.util.placement_group import PlacementGroup

from rlhf_ray.cluster.resource_plan import ResourcePlan
from rlhf_ray.cluster.roles.base import Role, start_in_order
from rlhf_ray.cluster.runtime.launch import Launcher
from rlhf_ray.cluster.runtime.session import reserved
from rlhf_ray.cluster.runtime.supervisor import Member, Supervisor
from rlhf_ray.config.groups.runtime import DeadlineConfig, PlacementConfig
from rlhf_ray.observe.startup import StartupClock


class Launched(NamedTuple):
    """Started actors, by role, with who watches over them and who ends them."""

    by_role: dict[str, list[Member]]
    supervisor: Supervisor
    launcher: Launcher


@contextmanager
def launched(
    roles: Sequence[Role],
    plan: ResourcePlan,
    *,
    placement: PlacementConfig,
    deadlines: DeadlineConfig,
    startup: StartupClock | None = None,
) -> Iterator[Launched]:
    """Every actor of the roles, started, by role; all are ended on the way out, whatever happened.

    Args:
        roles: with paths in their settings that every node can read.
        plan: where their actors go.
        startup: times the start.

    Raises:
        RequestError: the cluster is too small.
        RunFailed: a role did not start.
    """
    with (
        reserved_for(plan, placement=placement, deadlines=deadlines) as group,
        launched_in(group, roles, plan, deadlines=deadlines, startup=startup) as started,
    ):
        yield started


def reserved_for(
    plan: ResourcePlan, *, placement: PlacementConfig, deadlines: DeadlineConfig
) -> AbstractContextManager[PlacementGroup]:
    """The plan's bundles; see `session.reserved`."""
    return reserved(plan, wait_s=placement.wait_s, timeout_s=deadlines.start_s)


@contextmanager
def launched_in(
    group: PlacementGroup,
    roles: Sequence[Role],
    plan: ResourcePlan,
    *,
    deadlines: DeadlineConfig,
    startup: StartupClock | None = None,
) -> Iterator[Launched]:
    """Start some roles of a plan in bundles that are already reserved; see `launched`."""
    startup = startup or StartupClock(follows=True)
    supervisor = Supervisor(dataclasses.asdict(deadlines))
    launcher = Launcher(
        group,
        supervisor,
        timeout_s=deadlines.start_s,
        stop_s=deadlines.stop_s,
        environment=plan.environment,
    )
    orderly = False
    try:
        for role in roles:
            role_plan = plan.role(role.name)
            for rank in range(role_plan.num_actors):
                launcher.create(role_plan, rank, role.actor_class, role.settings(rank))
        by_role: dict[str, list[Member]] = {}
        for member in launcher.members():
            by_role.setdefault(member.name.role, []).append(member)
        for role, members in by_role.items():
            startup.role(role, "load", max(member.info.load_s for member in members))
        startup.done("workers")
        timeout_s = deadlines.start_s
        seconds = start_in_order(roles, by_role, supervisor, plan=plan, timeout_s=timeout_s)
        launcher.remember_processes()
        for role, slowest in seconds.items():
            startup.role(role, "start", slowest)
        startup.done("roles")
        yield Launched(by_role, supervisor, launcher)
        orderly = True
    finally:
        launcher.close(orderly=orderly)
