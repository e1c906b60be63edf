"""Rewards as the driver sees them: functions first, then one scorer after the other.

A group goes from actor to actor by reference. Nothing here waits: every call is made at once, and
Ray starts it when what it takes is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import ray

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.cluster.roles.base import Address
from rlhf_ray.cluster.runtime.process import ActorProcess
from rlhf_ray.cluster.runtime.supervisor import Member
from rlhf_ray.records import GroupSummary, RolloutGroup
from rlhf_ray.rewards.scorer import scored_by, scored_by_async


class ScorerPool(Protocol):
    """All actors of one kind of scorer, which share the groups."""

    def score(self, before: Call) -> Call:
        """Score the group that is the payload of `before`. Signal: summary. Payload: the group."""
        ...


class RewardGroup:
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


class ScorerActor(ActorProcess):
    """What all of them have in common; subclasses make `_worker`, a `GroupScorer`."""

    _worker: Any

    def score(self, group: RolloutGroup) -> tuple[GroupSummary, RolloutGroup]:
        scored, summary = scored_by(self._worker, group)
        return summary, scored

    def close(self) -> None:
        self._worker.close()


class RewardModelActor(ScorerActor):
    """One rank of a reward model."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        from rlhf_ray.training.roles.reward_scorer import RewardScorer

        self._worker = RewardScorer(**settings)

    def start(self, rank: int, world_size: int, address: Address) -> None:
        self._worker.start(rank, world_size, *address)

    def join(self, group: RolloutGroup) -> None:
        """Take part in scoring a group for the rank that is asked for the result."""
        scored_by(self._worker, group)


class AsyncScorerActor(ActorProcess):
    """What those have in common that wait for others; `_worker` is an `AsyncGroupScorer`."""

    _worker: Any

    async def score(self, group: RolloutGroup) -> tuple[GroupSummary, RolloutGroup]:
        scored, summary = await scored_by_async(self._worker, group)
        return summary, scored

    async def close(self) -> None:
        await self._worker.close()


class HttpRewardActor(AsyncScorerActor):
    """Asks the service at `reward.url`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        from rlhf_ray.rewards.http.scorer import HttpScorer

        self._worker = HttpScorer(**settings)

    async def start(self) -> None:
        """Nothing to do: the answer says that the process is there."""


class JudgeActor(AsyncScorerActor):
    """Asks engines for judgements: those of the judge, or those of the run."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self._settings = settings

    async def start(self, engines: Sequence[Any]) -> None:
        """`engines`: handles of `GeneratorActor` actors."""
        from rlhf_ray.models.loading import load_tokenizer
        from rlhf_ray.rewards.judge import JudgeScorer

        settings = self._settings
        self._worker = JudgeScorer(
            judge=settings["judge"],
            tokenizer=load_tokenizer(settings["source"]),
            engines=[_RemoteEngine(engine) for engine in engines],
            seed=settings["seed"],
        )


class _RemoteEngine:
    """A `JudgeEngine` in another actor."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def complete(self, asked: Sequence[Any], *, timeout_s: float) -> Sequence[Any]:
        return await self._handle.complete.remote(asked, timeout_s)


class RewardActor(ActorProcess):
    """One reward worker."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        from rlhf_ray.rewards.worker import RewardWorker

        self._worker = RewardWorker(**settings)

    def start(self) -> None:
        self._worker.start()

    def score(self, *parts: RolloutGroup) -> tuple[GroupSummary, RolloutGroup]:
        group, summary = self._worker.score(*parts)
        return summary, group

    def close(self) -> None:
        self._worker.close()
