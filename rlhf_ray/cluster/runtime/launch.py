"""Actors: created where the plan says, started together, ended without a trace."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import psutil
import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.cluster.resource_plan import RolePlan
from rlhf_ray.cluster.runtime.diagnose import kill_processes, on_nodes
from rlhf_ray.cluster.runtime.process import ActorProcess, ProcessInfo, ProcessKey
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
        self._infos: dict[MemberName, ProcessInfo] = {}
        self._processes: dict[MemberName, list[ProcessKey]] = {}

    def create(
        self,
        plan: RolePlan,
        rank: int,
        actor_class: type[ActorProcess],
        settings: object,
        *,
        incarnation: int = 1,
    ) -> MemberName:
        """One actor of a role; it comes up while others are created."""
        name = MemberName(role=plan.role, rank=rank, incarnation=incarnation)
        # Without variables Ray may use a process that it has started before it was asked.
        options: dict[str, Any] = {}
        if self._environment:
            options["runtime_env"] = {"env_vars": self._environment}
        if actor_class.max_calls:
            options["max_concurrency"] = actor_class.max_calls
        groups = actor_class.concurrency_groups
        remote: Any = ray.remote
        if groups:
            remote = remote(concurrency_groups=groups)
        self._handles[name] = (
            remote(actor_class)
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
        return name

    def members(self) -> list[Member]:
        """All actors with their processes, as soon as they are up.

        Raises:
            RunFailed: one of them failed to load, or was too late.
        """
        calls = [self.ask_process(name) for name in self._handles]
        infos = self._supervisor.results(calls, phase="start", timeout_s=self._timeout_s)
        return [self.add(name, info) for name, info in zip(self._handles, infos, strict=True)]

    def ask_process(self, name: MemberName) -> Call:
        """Ask an actor for its `ProcessInfo`, which it answers as soon as it is up."""
        handle = self._handles[name]
        return Call(member=name, signal=handle.process_info.remote(), payload=None)

    def ask_family(self, name: MemberName) -> Call:
        """Ask an actor for its process and all that it has started."""
        handle = self._handles[name]
        return Call(member=name, signal=handle.process_family.remote(), payload=None)

    def add(self, name: MemberName, info: ProcessInfo) -> Member:
        """Note the process of an actor, and let it be supervised."""
        member = Member(name=name, handle=self._handles[name], info=info)
        self._supervisor.add(member)
        self._infos[name] = info
        self._processes[name] = [(info.pid, info.created)]
        return member

    def note_family(self, name: MemberName, family: Iterable[ProcessKey]) -> None:
        """Note what an actor has started, for an end that it does not answer."""
        self._processes[name].extend(family)

    def remember_processes(self) -> None:
        """Note the children of every actor, too, for a `close` that no actor answers."""
        calls = [self.ask_family(name) for name in self._handles]
        families = self._supervisor.results(calls, phase="start", timeout_s=self._timeout_s)
        for name, family in zip(self._handles, families, strict=True):
            self.note_family(name, family)

    def end(self, name: MemberName) -> str:
        """Kill one actor; see `end_all`."""
        return self.end_all([name])[0]

    def end_all(self, names: Sequence[MemberName]) -> list[str]:
        """Kill actors with all their processes, whatever state they are in (SIGSTOP, too).

        When this returns, nothing of them uses its bundle, unless its node does not answer.

        Returns:
            process, node and log of each in some words.
        """
        words: list[str] = []
        by_node: dict[str, list[ProcessKey]] = {}
        for name in names:
            ray.kill(self._handles.pop(name))
            self._supervisor.forget(name)
            info = self._infos.pop(name, None)
            if info is None:
                words.append("a process that had not come up")
                continue
            by_node.setdefault(info.node_id, []).extend(self._processes.pop(name))
            log = info.stderr_path or "unknown"
            words.append(f"process {info.pid} on node {info.node_id}, log {log}")
        on_nodes(kill_and_wait, by_node)
        return words

    def close(self, *, orderly: bool) -> None:
        """End every actor; in order only if nothing failed. What is left then is killed."""
        if orderly:
            closing = [handle.close.remote() for handle in reversed(self._handles.values())]
            ray.wait(closing, num_returns=len(closing), timeout=self._stop_s)
        for handle in self._handles.values():
            ray.kill(handle)
        by_node: dict[str, list[ProcessKey]] = {}
        for name, processes in self._processes.items():
            by_node.setdefault(self._infos[name].node_id, []).extend(processes)
        on_nodes(end_processes, by_node)


def kill_and_wait(keys: Sequence[ProcessKey]) -> None:
    """Kill processes of this node, and wait until they are gone."""
    kill_processes(keys)
    deadline = time.monotonic() + _KILL_WAIT_S
    while time.monotonic() < deadline and kill_processes(keys):
        time.sleep(0.05)


def end_processes(keys: Sequence[ProcessKey]) -> int:
    """Wait a moment for processes of this node to end by themselves; then kill them."""
    deadline = time.monotonic() + _KILL_WAIT_S
    while time.monotonic() < deadline and any(psutil.pid_exists(pid) for pid, _ in keys):
        time.sleep(0.05)
    return kill_processes(keys)
