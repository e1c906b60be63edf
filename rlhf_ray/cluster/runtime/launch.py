"""Actors: created where the plan says, started together, ended without a trace."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.cluster.resource_plan import RolePlan
from rlhf_ray.cluster.runtime.diagnose import kill_processes, on_nodes
from rlhf_ray.cluster.runtime.process import ProcessKey
from rlhf_ray.cluster.runtime.supervisor import Member, Supervisor

_KILL_WAIT_S = 5.0


class Launcher:
    """Creates actors and remembers their processes until `close`.

    Args:
        timeout_s: for all actors of a role to come up, and again for them to start.
        stop_s: for an orderly end.
        environment: variables of every actor, in addition to those of its node.
    """

    def __init__(
        self,
        group: PlacementGroup,
        supervisor: Supervisor,
        *,
        timeout_s: float,
        stop_s: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._group = group
        self._supervisor = supervisor
        self._timeout_s = timeout_s
        self._stop_s = stop_s
        self._environment = dict(environment or {})
        self._handles: dict[MemberName, Any] = {}
        self._processes: dict[str, list[ProcessKey]] = {}  # by node

    def create(self, plan: RolePlan, rank: int, actor_class: type, settings: object) -> None:
        """One actor of a role; it comes up while others are created."""
        name = MemberName(role=plan.role, rank=rank)
        # Without variables Ray may use a process that it has started before it was asked.
        options: dict[str, Any] = {}
        if self._environment:
            options["runtime_env"] = {"env_vars": self._environment}
        self._handles[name] = (
            ray.remote(actor_class)
            .options(
                name=str(name),
                num_cpus=plan.num_cpus,
                num_gpus=plan.num_gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._group, placement_group_bundle_index=plan.bundle_indices[rank]
                ),
                **options,
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
        on_nodes(end_processes, self._processes)


def end_processes(keys: Sequence[ProcessKey]) -> int:
    """Wait a moment for processes of this node to end by themselves; then kill them."""
    deadline = time.monotonic() + _KILL_WAIT_S
    while time.monotonic() < deadline and any(psutil.pid_exists(pid) for pid, _ in keys):
        time.sleep(0.05)
    return kill_processes(keys)
