"""New actors in the place of lost ones: the same bundle, the next incarnation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rlhf_ray.calls import Call, CallWaiter, MemberName
from rlhf_ray.cluster.resource_plan import ResourcePlan, RolePlan
from rlhf_ray.cluster.roles.base import Role, Starting
from rlhf_ray.cluster.runtime.launch import Launcher
from rlhf_ray.cluster.runtime.process import ProcessInfo
from rlhf_ray.cluster.runtime.supervisor import Member
from rlhf_ray.losses import Lost


class Replacements:
    """Ends lost actors of one role and starts others in their bundles, in the background.

    Args:
        plan: of the run; its bundles stay reserved while an actor is replaced.
        on_started: is given every new actor when it has started.
        timeout_s: of a wait within the start of an actor.
    """

    def __init__(
        self,
        role: Role,
        plan: ResourcePlan,
        launcher: Launcher,
        waiter: CallWaiter,
        *,
        on_started: Callable[[Member], None],
        timeout_s: float,
    ) -> None:
        self._role = role
        self._plan = plan
        self._launcher = launcher
        self._waiter = waiter
        self._on_started = on_started
        self._timeout_s = timeout_s
        # Of every call of a start: what to do with its answer.
        self._next: dict[Call, Callable[[Call, Any], None]] = {}
        self._calls = waiter.pending()
        self._members: dict[MemberName, Member] = {}
        self._started: list[MemberName] = []

    def fence(self, lost: MemberName) -> str:
        """Kill what is left of an actor, so that it never answers again; says where it was."""
        for call in [call for call in self._next if call.member == lost]:
            self._calls.discard(call)
            del self._next[call]
        return self._launcher.end(lost)

    def begin(self, name: MemberName) -> None:
        """Start this incarnation; returns at once."""
        rank = name.rank
        created = self._launcher.create(
            self._plan.role(name.role),
            rank,
            self._role.actor_class,
            self._role.settings(rank),
            incarnation=name.incarnation,
        )
        self._follow(self._launcher.ask_process(created), self._load)

    def started(self) -> list[MemberName]:
        """Take the actors that have started since the last call; waits for nothing.

        Raises:
            RunFailed: one could not start, and the run cannot go on without it.
        """
        for call, value in self._calls.take_ready(phase="start"):
            # The loss of an actor that starts has been taken note of; `fence` forgot its calls.
            then = self._next.pop(call, None)
            if then is not None and not isinstance(value, Lost):
                then(call, value)
        started, self._started = self._started, []
        return started

    def _follow(self, call: Call, then: Callable[[Call, Any], None]) -> None:
        call = replace(call, work="start")  # Whatever the driver waits for meanwhile.
        self._next[call] = then
        self._calls.add(call)

    def _load(self, call: Call, info: ProcessInfo) -> None:
        member = self._members[call.member] = self._launcher.add(call.member, info)
        starting = Starting(
            by_role={self._role.name: [member]},
            waiter=self._waiter,
            timeout_s=self._timeout_s,
            plan=_with_one_actor(self._plan, call.member),
        )
        (loading,) = self._role.start([member], starting)
        self._follow(loading, self._ask_family)

    def _ask_family(self, call: Call, _seconds: Any) -> None:
        self._follow(self._launcher.ask_family(call.member), self._finish)

    def _finish(self, call: Call, family: Any) -> None:
        self._launcher.note_family(call.member, family)
        self._on_started(self._members.pop(call.member))
        self._started.append(call.member)


def _with_one_actor(plan: ResourcePlan, name: MemberName) -> ResourcePlan:
    """The plan as if this were the only actor of its role."""
    whole = plan.role(name.role)
    own: RolePlan = replace(
        whole,
        num_actors=1,
        bundle_indices=(whole.bundle_indices[name.rank],),
        worker_bundles=whole.worker_bundles[name.rank : name.rank + 1],
    )
    return replace(plan, roles=tuple(own if role is whole else role for role in plan.roles))
