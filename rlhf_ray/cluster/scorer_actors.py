"""What scores whole groups after the reward functions, as Ray actors; see `rewards.scorer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_ray.cluster.roles.base import Address
from rlhf_ray.cluster.runtime.process import ActorProcess
from rlhf_ray.records import GroupSummary, RolloutGroup
from rlhf_ray.rewards.scorer import scored_by, scored_by_async


class Scorer(ActorProcess):
    """What all of them have in common; subclasses make `_worker`, a `GroupScorer`."""

    _worker: Any

    def score(self, group: RolloutGroup) -> tuple[GroupSummary, RolloutGroup]:
        scored, summary = scored_by(self._worker, group)
        return summary, scored

    def close(self) -> None:
        self._worker.close()


class RewardModel(Scorer):
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


class AsyncScorer(ActorProcess):
    """What those have in common that wait for others; `_worker` is an `AsyncGroupScorer`."""

    _worker: Any

    async def score(self, group: RolloutGroup) -> tuple[GroupSummary, RolloutGroup]:
        scored, summary = await scored_by_async(self._worker, group)
        return summary, scored

    async def close(self) -> None:
        await self._worker.close()


class HttpReward(AsyncScorer):
    """Asks the service at `reward.url`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        from rlhf_ray.rewards.http_scorer import HttpScorer

        self._worker = HttpScorer(**settings)

    async def start(self) -> None:
        """Nothing to do: the answer says that the process is there."""


class Judge(AsyncScorer):
    """Asks engines for judgements: those of the judge, or those of the run."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self._settings = settings

    async def start(self, engines: Sequence[Any]) -> None:
        """`engines`: handles of `Generator` actors."""
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
