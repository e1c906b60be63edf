"""Reward functions, and the kinds of rewards that score after them.

A group goes from actor to actor by reference: first a reward worker runs the functions, then one
scorer after the other adds its part (a reward model, a service, a judge). Nothing here waits: every
call is made at once, and Ray starts it when its arguments are there.

A kind of reward is one file of this folder. It offers a `ScoringKind`, and `scoring_kinds.py` lists
them in the order in which they score.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rlhf_ray.batching.balance import Loads
from rlhf_ray.calls import Call, MemberName
from rlhf_ray.cluster.resource_plan import Resources
from rlhf_ray.cluster.roles.base import Role, start_actors
from rlhf_ray.cluster.runtime.process import ActorProcess

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf_ray.cluster.runtime.supervisor import Member
    from rlhf_ray.config.groups.generation import GenerationConfig
    from rlhf_ray.config.groups.model import ModelConfig
    from rlhf_ray.config.groups.reward import RewardConfig
    from rlhf_ray.data.prompts.load import PromptSet
    from rlhf_ray.records import GroupSummary, RolloutGroup

Report = Callable[[str], None]
# In the record of times, whatever the driver waits for meanwhile.
_WORK = "score"


class ScorerPool(Protocol):
    """All actors of one kind of scorer, which share the groups."""

    def score(self, before: Call) -> Call:
        """Score the group that is the payload of `before`. Signal: summary. Payload: the group."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringContext:
    """The part of a run's configuration that kinds of rewards read.

    Attributes:
        collective_timeout_s: for ranks that hold one model together.
    """

    reward: RewardConfig
    model: ModelConfig
    generation: GenerationConfig
    seed: int
    collective_timeout_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """One kind of reward in a run: its roles, and the pool that scores with them."""

    roles: tuple[Role, ...]
    pool: Callable[[Mapping[str, Sequence[Member]]], ScorerPool]


def _nothing_to_check(context: ScoringContext, prompts: PromptSet, report: Report) -> None:
    del context, prompts, report


def _nothing_to_resolve(
    context: ScoringContext,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    report: Report,
) -> RewardConfig:
    del tokenizer, prompts, report
    return context.reward


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringKind:
    """A kind of reward.

    Attributes:
        name: as in `config.groups.reward.REWARD_KINDS`.
        scoring: its part of a run; None where the configuration does not ask for it.
        check: refuse with a RequestError, before any worker starts, what cannot work; takes the
            prompts and a receiver of lines for people.
        resolve: the reward settings with everything decided that a worker would have to decide;
            takes the policy's tokenizer, too.
    """

    name: str
    scoring: Callable[[ScoringContext], Scoring | None]
    check: Callable[[ScoringContext, PromptSet, Report], None] = _nothing_to_check
    resolve: Callable[
        [ScoringContext, PreTrainedTokenizerBase, PromptSet, Report], RewardConfig
    ] = _nothing_to_resolve


def reward_role(reward: RewardConfig) -> Role:
    """The workers that run reward functions."""
    return Role(
        resources=Resources(
            role="reward", num_actors=reward.num_workers, num_cpus=reward.num_cpus, num_gpus=0.0
        ),
        actor_class=RewardActor,
        settings=lambda _: reward,
        start=start_actors,
    )


class RewardActor(ActorProcess):
    """One reward worker; its settings are the `reward` group."""

    def __init__(self, reward: RewardConfig) -> None:
        super().__init__()
        from rlhf_ray.rewards.worker import RewardWorker

        self._worker = RewardWorker(reward)

    def start(self) -> None:
        self._worker.start()

    def score(self, *parts: RolloutGroup) -> tuple[GroupSummary, RolloutGroup]:
        group, summary = self._worker.score(*parts)
        return summary, group

    def close(self) -> None:
        self._worker.close()


class ScorerActor(ActorProcess):
    """Base of scorers that compute; subclasses make `_worker`, a `GroupScorer`."""

    _worker: Any

    def score(self, group: RolloutGroup) -> tuple[GroupSummary, RolloutGroup]:
        from rlhf_ray.rewards.scorer import scored_by

        scored, summary = scored_by(self._worker, group)
        return summary, scored

    def close(self) -> None:
        self._worker.close()


class AsyncScorerActor(ActorProcess):
    """Base of scorers that wait for others; subclasses make `_worker`, an `AsyncGroupScorer`."""

    _worker: Any

    async def score(self, group: RolloutGroup) -> tuple[GroupSummary, RolloutGroup]:
        from rlhf_ray.rewards.scorer import scored_by_async

        scored, summary = await scored_by_async(self._worker, group)
        return summary, scored

    async def close(self) -> None:
        await self._worker.close()


class RewardGroup:
    """All reward workers and the scorers after them. A request names the worker that serves it.

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
        """Score a group.

        Args:
            parts: references to groups of one prompt.

        Returns:
            a call with the summary as signal and the scored group as payload.
        """
        member = self._members[worker]
        refs = member.handle.score.options(num_returns=2).remote(*parts)
        call = Call(member=member.name, signal=refs[0], payload=refs[1], work=_WORK)
        for scorer in self._scorers:
            call = scorer.score(call)
        return call


class ReplicatedScorer:
    """Actors that each score groups on their own; the least loaded one gets the next group."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = tuple(members)
        self._loads = Loads(len(self._members))
        # Members that have finished a group; filled by a thread of Ray.
        self._finished: deque[int] = deque()

    def score(self, before: Call) -> Call:
        while self._finished:
            self._loads.add(self._finished.popleft(), -1)
        chosen = self._loads.least()
        member, finished = self._members[chosen], self._finished
        signal, group = member.handle.score.options(num_returns=2).remote(before.payload)
        self._loads.add(chosen, 1)
        signal.future().add_done_callback(lambda _: finished.append(chosen))
        return Call(member=member.name, signal=signal, payload=group, before=before, work=_WORK)


class ShardedScorer:
    """Ranks that hold one model together: all of them score every group, in the same order."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = tuple(members)

    def score(self, before: Call) -> Call:
        first, *others = self._members
        # Ray starts the methods of an actor in the order in which they were called.
        signal, group = first.handle.score.options(num_returns=2).remote(before.payload)
        for member in others:
            joined = member.handle.join.remote(before.payload)
            # A rank that fails makes the others wait in vain: its failure is this call's, too.
            before = Call(
                member=member.name,
                signal=joined,
                payload=before.payload,
                before=before,
                work=_WORK,
            )
        return Call(member=first.name, signal=signal, payload=group, before=before, work=_WORK)
