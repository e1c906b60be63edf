"""Actors: created where the plan says, started together, ended without a trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.cluster.resource_plan import ResourcePlan, RolePlan
from rlhf_ray.cluster.runtime.diagnose import kill_processes, on_node
from rlhf_ray.cluster.runtime.process import ProcessKey
from rlhf_ray.cluster.runtime.session import reserved
from rlhf_ray.cluster.runtime.supervisor import Member, Supervisor
from rlhf_ray.config.run import Config

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

    def create(
        self, plan: RolePlan, rank: int, actor_class: type, settings: dict[str, Any]
    ) -> None:
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
        """Note the children of every actor too, for `close` when nobody answers any more."""
        calls = [
            Call(member=name, signal=handle.process_family.remote(), payload=None)
            for name, handle in self._handles.items()
        ]
        preference_groups = self._supervisor.results(
            calls, phase="start", timeout_s=self._timeout_s
        )
        for member, preference_group in zip(
            self._supervisor.members, preference_groups, strict=True
        ):
            self._processes[member.info.node_id].extend(preference_group)

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
