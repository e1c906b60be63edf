"""The ranks of the roles that train, ended and started again in their bundles, all together.

Ranks of a role meet in process groups, which no other rank can join: so all of them start again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rlhf_ray.calls import MemberName
from rlhf_ray.cluster.resource_plan import ResourcePlan
from rlhf_ray.cluster.roles.base import RankGroup, Role, Starting
from rlhf_ray.cluster.runtime.launch import Launcher
from rlhf_ray.cluster.runtime.supervisor import Member, Supervisor


class TrainedRestarts:
    """See the module. Implements `driver.healing.parts.Restarts`.

    Args:
        roles: those that train.
        groups: their groups, by role, which go on with the new ranks.
        plan: of the run; its bundles stay reserved meanwhile.
        timeout_s: for all ranks to come up, and again to start.
    """

    def __init__(
        self,
        roles: Sequence[Role],
        groups: Mapping[str, RankGroup],
        plan: ResourcePlan,
        launcher: Launcher,
        supervisor: Supervisor,
        *,
        timeout_s: float,
    ) -> None:
        self._roles = tuple(roles)
        self._groups = groups
        self._plan = plan
        self._launcher = launcher
        self._supervisor = supervisor
        self._timeout_s = timeout_s
        self._incarnation = 1
        self._names = [
            MemberName(role=role.name, rank=rank)
            for role in roles
            for rank in range(plan.role(role.name).num_actors)
        ]

    @property
    def names(self) -> Collection[MemberName]:
        return tuple(self._names)

    def end(self) -> dict[MemberName, str]:
        names, self._names = self._names, []
        return dict(zip(names, self._launcher.end_all(names), strict=True))

    def start(self) -> None:
        self._incarnation += 1
        for role in self._roles:
            place = self._plan.role(role.name)
            for rank in range(place.num_actors):
                name = self._launcher.create(
                    place,
                    rank,
                    role.actor_class,
                    role.settings(rank),
                    incarnation=self._incarnation,
                )
                self._names.append(name)
        names = list(self._names)
        infos = self._wait([self._launcher.ask_process(name) for name in names])
        by_role: dict[str, list[Member]] = {}
        for name, info in zip(names, infos, strict=True):
            by_role.setdefault(name.role, []).append(self._launcher.add(name, info))
        starting = Starting(
            by_role=by_role,
            waiter=self._supervisor,
            timeout_s=self._timeout_s,
            plan=self._plan,
        )
        self._wait([c for role in self._roles for c in role.start(by_role[role.name], starting)])
        families = self._wait([self._launcher.ask_family(name) for name in names])
        for name, family in zip(names, families, strict=True):
            self._launcher.note_family(name, family)
        for name, members in by_role.items():
            self._groups[name].replace_members(members)

    def _wait(self, calls: Sequence) -> list:
        return self._supervisor.results(calls, phase="start", timeout_s=self._timeout_s)
