"""The base of every role: what it asks of the cluster, how its actors start, how they are called.

A role is one file of this folder. It holds, in this order: the settings of its worker, the role
itself (`Role`: resources, actor class, settings per rank, start), the actor, and the group, which
the driver calls.

Actors import their worker in their own process only, take object references as plain arguments (Ray
resolves those and no nested ones), and return a small signal first and a large result second, so
that the driver learns of an error without fetching the result.

Groups start work and return calls; `runtime.supervisor.Supervisor` waits for them. Scatter and
gather are written out in each method.

Files of roles import neither Ray nor torch at their top: `stage=plan` reads them within a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_ray.batching.balance import balance
from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.cluster.resource_plan import ResourcePlan, Resources
from rlhf_ray.cluster.runtime.process import ActorProcess

if TYPE_CHECKING:
    from rlhf_ray.cluster.runtime.supervisor import Member
    from rlhf_ray.config.groups.training import RoleConfig
    from rlhf_ray.records import RolloutGroup

# Host and port at which rank 0 of a role listens.
Address = tuple[str, int]
# Ranks give up a little before the driver, so that they say what they waited for.
_START_SHARE = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Starting:
    """The state of a start, for roles that need other roles for theirs.

    Attributes:
        by_role: all actors, by role, in the order of their ranks.
        timeout_s: of a wait within a start.
        plan: where all actors are.
    """

    by_role: Mapping[str, Sequence[Member]]
    waiter: CallWaiter
    timeout_s: float
    plan: ResourcePlan


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """One role of a run.

    Attributes:
        settings: from a rank to the settings that its actor is created with.
        ranks_per_sample: neighbouring ranks that compute every sample together.
        start: begins to start the actors; the caller waits for the calls of all roles together.
        starts_after: a role that must have started before; None starts with the others.
    """

    resources: Resources
    actor_class: type[ActorProcess]
    settings: Callable[[int], object]
    start: Callable[[Sequence[Member], Starting], list[Call]]
    ranks_per_sample: int = 1
    starts_after: str | None = None

    @property
    def name(self) -> str:
        return self.resources.role


def rank_resources(
    role: str, settings: RoleConfig, *, shares_bundles_of: str | None = None
) -> Resources:
    """The resources of a DeepSpeed role."""
    return Resources(
        role=role,
        num_actors=settings.num_ranks,
        num_cpus=settings.num_cpus,
        num_gpus=settings.num_gpus,
        # They exchange most of what they compute: a group does not reach over a node.
        actors_per_bundle=settings.ranks_per_sample,
        shares_bundles_of=shares_bundles_of,
    )


def start_actors(members: Sequence[Member], _: Starting) -> list[Call]:
    """Begin to start actors that need nothing of each other."""
    return [call_of(m, m.handle.start.remote()) for m in members]


def start_ranks(members: Sequence[Member], starting: Starting) -> list[Call]:
    """Begin to start the ranks of one model: rank 0 chooses the address at which all meet."""
    first = call_of(members[0], members[0].handle.reserve_address.remote())
    (address,) = starting.waiter.results([first], phase="start", timeout_s=starting.timeout_s)
    return [
        call_of(
            member,
            member.handle.start.remote(rank, len(members), address, starting.timeout_s),
        )
        for rank, member in enumerate(members)
    ]


def start_in_order(
    roles: Sequence[Role],
    by_role: Mapping[str, Sequence[Member]],
    waiter: CallWaiter,
    *,
    plan: ResourcePlan,
    timeout_s: float,
) -> dict[str, float]:
    """Start all roles within one deadline: at the same time, except those that follow another.

    Of two roles on one GPU the first must have measured its memory before the second takes any.

    Returns:
        seconds of the slowest actor of every role that measures its start.

    Raises:
        RunFailed: a role did not start, or not in time.
    """
    deadline = time.monotonic() + timeout_s
    started: set[str] = set()
    seconds_of: dict[str, float] = {}
    left = list(roles)
    while left:
        turn = [role for role in left if role.starts_after is None or role.starts_after in started]
        assert turn, f"{[role.name for role in left]} wait for roles that are not of this run"
        seconds = max(0.0, deadline - time.monotonic())
        starting = Starting(by_role=by_role, waiter=waiter, timeout_s=seconds, plan=plan)
        calls = [call for role in turn for call in role.start(by_role[role.name], starting)]
        values = waiter.results(calls, phase="start", timeout_s=seconds)
        for call, value in zip(calls, values, strict=True):
            if value is not None:
                role_name = call.member.role
                seconds_of[role_name] = max(value, seconds_of.get(role_name, 0.0))
        started.update(role.name for role in turn)
        left = [role for role in left if role not in turn]
    return seconds_of


def call_of(member: Member, refs: Any, *, work: str | None = "") -> Call:
    """The call of a remote method that returns one value, or a signal and a payload.

    Args:
        work: see `Call`.
    """
    signal, payload = refs if isinstance(refs, list) else (refs, None)
    return Call(member=member.name, signal=signal, payload=payload, work=work)


class MeetingActor(ActorProcess):
    """An actor whose `_worker` starts as one of several ranks."""

    _worker: Any

    def start(self, rank: int, world_size: int, address: Address, timeout_s: float) -> float:
        """Meet the other ranks and load the model.

        Args:
            timeout_s: of the start. Ranks load models at different speeds, so its collective
                operations may take longer than later ones.

        Returns:
            seconds that it took.
        """
        started = time.monotonic()
        from rlhf_ray.training.engine.meeting import Meeting

        meeting = Meeting(listener=self.take_listener(), timeout_s=_START_SHARE * timeout_s)
        self._worker.start(rank, world_size, *address, meeting=meeting)
        return time.monotonic() - started


class RankActor(MeetingActor):
    """One rank of a DeepSpeed role; subclasses make `_worker`."""

    def score(self, *groups: RolloutGroup) -> tuple[None, Any]:
        return None, self._worker.score(groups)

    def close(self) -> None:
        self._worker.close()


class RankGroup:
    """All ranks of a DeepSpeed role.

    Args:
        members: in the order of their ranks.
        ranks_per_sample: neighbouring ranks that compute every sample together. They get the same
            samples.
    """

    def __init__(self, members: Sequence[Member], *, ranks_per_sample: int = 1) -> None:
        self._members = tuple(members)
        self._ranks_per_sample = ranks_per_sample

    def replace_members(self, members: Sequence[Member]) -> None:
        """Go on with other actors of the same places, in the order of their ranks."""
        assert len(members) == len(self._members), "as many ranks as before"
        self._members = tuple(members)

    @property
    def num_shares(self) -> int:
        """Shares into which samples are divided: one for every group of ranks."""
        return len(self._members) // self._ranks_per_sample

    def _with_share(self, shares: Sequence[Any]) -> list[tuple[Member, Any]]:
        """Every rank with the share of its group."""
        assert len(shares) == self.num_shares, f"{len(shares)} shares for {self.num_shares} groups"
        return [
            (member, shares[rank // self._ranks_per_sample])
            for rank, member in enumerate(self._members)
        ]

    @property
    def nodes(self) -> frozenset[str]:
        """Ids of the nodes with a rank."""
        return frozenset(member.info.node_id for member in self._members)

    def score(self, groups: Sequence[Any], num_tokens: Sequence[int]) -> list[Call]:
        """Score groups, scattered over the ranks.

        Args:
            groups: references.
            num_tokens: of each group, to balance the ranks.

        Returns:
            a call per rank, with a reference to its `list[TokenValues]` as payload. Of ranks that
            compute samples together, all but the first have an empty list.
        """
        return self._scattered([m.handle.score for m in self._members], groups, num_tokens)

    def _scattered(
        self, methods: Sequence[Any], groups: Sequence[Any], num_tokens: Sequence[int]
    ) -> list[Call]:
        """Call every rank's method with its share of the groups."""
        shares = self._with_share(balance(num_tokens, self.num_shares))
        return [
            call_of(member, method.options(num_returns=2).remote(*(groups[i] for i in share)))
            for (member, share), method in zip(shares, methods, strict=True)
        ]
