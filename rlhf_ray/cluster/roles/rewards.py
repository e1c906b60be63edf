"""Rewards as the driver sees them: functions first, then one scorer after the other.

A group goes from actor to actor by reference. Nothing here waits: every call is made at once, and
Ray starts it when what it takes is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import ray

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.cluster.runtime.supervisor import Member


class ScorerPool(Protocol):
    """All actors of one kind of scorer, which share the groups."""

    def score(self, before: Call) -> Call:
        """Score the group that is the payload of `before`. Signal: summary. Payload: the group."""
        ...


class Rewards:
    """All reward workers, and what scores after them. A request names the worker that serves it.

    Args:
        scorers: in the order in which a group goes through them.
    """

    def __init__(self, members: Sequence[Member], scorers: Sequence[ScorerPool] = ()) -> None:
        self._members = tuple(members)
        self._scorers = tuple(scorers)

    @property
    def names(self) -> tuple[MemberName, ...]:
        return tuple(member.name for member in self._members)

    def score(self, worker: int, parts: Sequence[Any]) -> Call:
        """`parts`: references to groups of one prompt. Signal: summary. Payload: the group."""
        member = self._members[worker]
        refs = member.handle.score.options(num_returns=2).remote(*parts)
        call = Call(member=member.name, signal=refs[0], payload=refs[1])
        for scorer in self._scorers:
            call = scorer.score(call)
        return call


class Replicas:
    """Actors that each score groups on their own; the least loaded one gets the next."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = tuple(members)
        self._pending: list[list[Any]] = [[] for _ in self._members]

    def score(self, before: Call) -> Call:
        self._pending = [_unfinished(signals) for signals in self._pending]
        loads = [len(signals) for signals in self._pending]
        chosen = loads.index(min(loads))
        member = self._members[chosen]
        signal, group = member.handle.score.options(num_returns=2).remote(before.payload)
        self._pending[chosen].append(signal)
        return Call(member=member.name, signal=signal, payload=group, before=before)


class OneOfRanks:
    """Ranks that hold one model together: all of them score every group, in the same order."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = tuple(members)

    def score(self, before: Call) -> Call:
        first, *others = self._members
        # Ray starts the methods of an actor in the order in which they were called.
        signal, group = first.handle.score.options(num_returns=2).remote(before.payload)
        for member in others:
            joined = member.handle.join.remote(before.payload)
            # Ranks wait for each other.
            before = Call(member=member.name, signal=joined, payload=before.payload, before=before)
        return Call(member=first.name, signal=signal, payload=group, before=before)


def _unfinished(signals: list[Any]) -> list[Any]:
    if not signals:
        return []
    return ray.wait(signals, num_returns=len(signals), timeout=0, fetch_local=False)[1]
