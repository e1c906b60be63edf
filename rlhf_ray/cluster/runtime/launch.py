"""Actors: created where the plan says, started together, ended without a trace."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.cluster.resource_plan import ResourcePlan, RolePlan
from rlhf_ray.cluster.roles.base import Role, Starting
from rlhf_ray.cluster.runtime.diagnose import kill_processes, on_node
from rlhf_ray.cluster.runtime.process import ProcessKey
from rlhf_ray.cluster.runtime.session import reserved
from rlhf_ray.cluster.runtime.supervisor import Member, Supervisor
from rlhf_ray.config.groups.runtime import DeadlineConfig, PlacementConfig

_KILL_WAIT_S = 5.0


class Launcher:
    """Creates actors and remembers their processes until `close`.

    Args:
        timeout_s: for all actors of a role to come up, and again for them to start.
        stop_s: for an orderly end.
    """

    def __init__(
        self,
        group: PlacementGroup,
        supervisor: Supervisor,
        *,
        timeout_s: float,
        stop_s: float,
    ) -> None:
        self._group = group
        self._supervisor = supervisor
        self._timeout_s = timeout_s
        self._stop_s = stop_s
        self._handles: dict[MemberName, Any] = {}
        self._processes: dict[str, list[ProcessKey]] = {}  # by node

    def create(self, plan: RolePlan, rank: int, actor_class: type, settings: object) -> None:
        """One actor of a role; it comes up while others are created."""
        name = MemberName(role=plan.role, rank=rank)
        self._handles[name] = (
            ray.remote(actor_class)
            .options(
                name=str(name),
                num_cpus=plan.num_cpus,
                num_gpus=plan.num_gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._group, placement_group_bundle_index=plan.bundle_indices[rank]
                ),
            )
            .remote(settings)
        )

    def members(self) -> list[Member]:
        """All actors with their processes, as soon as they are up.

        Raises:
            RunFailed: one of them failed to load, or was too late.
        """
        calls = [
            Call(member=name, signal=handle.process_info.remote(), payload=None)
            for name, handle in self._handles.items()
        ]
        infos = self._supervisor.results(calls, phase="start", timeout_s=self._timeout_s)
        members = []
        for name, info in zip(self._handles, infos, strict=True):
            member = Member(name=name, handle=self._handles[name], info=info)
            self._supervisor.add(member)
            self._processes.setdefault(info.node_id, []).append((info.pid, info.created))
            members.append(member)
        return members

    def remember_processes(self) -> None:
        """Note the children of every actor, too, for a `close` that no actor answers."""
        calls = [
            Call(member=name, signal=handle.process_family.remote(), payload=None)
            for name, handle in self._handles.items()
        ]
        families = self._supervisor.results(calls, phase="start", timeout_s=self._timeout_s)
        for member, family in zip(self._supervisor.members, families, strict=True):
            self._processes[member.info.node_id].extend(family)

    def close(self, *, orderly: bool) -> None:
        """End every actor; in order only if nothing failed. What is left then is killed."""
        if orderly:
            closing = [handle.close.remote() for handle in reversed(self._handles.values())]
            ray.wait(closing, num_returns=len(closing), timeout=self._stop_s)
        for handle in self._handles.values():
            ray.kill(handle)
        for node_id, keys in self._processes.items():
            try:
                on_node(node_id, end_processes, keys)
            except RayError:
                continue  # the node is gone, and its processes with it


def end_processes(keys: Sequence[ProcessKey]) -> int:
    """Wait a moment for processes of this node to end by themselves; then kill them."""
    deadline = time.monotonic() + _KILL_WAIT_S
    while time.monotonic() < deadline and any(psutil.pid_exists(pid) for pid, _ in keys):
        time.sleep(0.05)
    return kill_processes(keys)


@contextmanager
def launched(
    roles: Sequence[Role],
    plan: ResourcePlan,
    *,
    placement: PlacementConfig,
    deadlines: DeadlineConfig,
) -> Iterator[tuple[dict[str, list[Member]], Supervisor]]:
    """Every actor of the roles, started, by role; all are ended on the way out, whatever happened.

    Args:
        roles: with paths in their settings that every node can read.
        plan: where their actors go.

    Raises:
        RequestError: the cluster is too small.
        RunFailed: a role did not start.
    """
    with (
        reserved_for(plan, placement=placement, deadlines=deadlines) as group,
        launched_in(group, roles, plan, deadlines=deadlines) as started,
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
) -> Iterator[tuple[dict[str, list[Member]], Supervisor]]:
    """As `launched`, some of a plan's roles in bundles that are reserved already."""
    supervisor = Supervisor()
    launcher = Launcher(group, supervisor, timeout_s=deadlines.start_s, stop_s=deadlines.stop_s)
    orderly = False
    try:
        for role in roles:
            role_plan = plan.role(role.name)
            for rank in range(role_plan.num_actors):
                launcher.create(role_plan, rank, role.actor_class, role.settings(rank))
        by_role: dict[str, list[Member]] = {}
        for member in launcher.members():
            by_role.setdefault(member.name.role, []).append(member)
        # All roles load their models at the same time.
        starting = Starting(by_role=by_role, waiter=supervisor, timeout_s=deadlines.start_s)
        calls = [call for role in roles for call in role.start(by_role[role.name], starting)]
        supervisor.results(calls, phase="start", timeout_s=deadlines.start_s)
        launcher.remember_processes()
        yield by_role, supervisor
        orderly = True
    finally:
        launcher.close(orderly=orderly)
