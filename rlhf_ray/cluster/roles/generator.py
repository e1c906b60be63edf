"""The engines: actor and facade."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.cluster.roles.base import call_of
from rlhf_ray.cluster.runtime.process import ActorProcess
from rlhf_ray.cluster.runtime.supervisor import Member
from rlhf_ray.records import Prompt, RolloutGroup, SampleFailure


class GeneratorGroup:
    """All engines. A request names the engine that serves it."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = tuple(members)

    @property
    def names(self) -> tuple[MemberName, ...]:
        return tuple(member.name for member in self._members)

    def generate(self, engine: int, prompt: Prompt, sample_indices: tuple[int, ...]) -> Call:
        """Signal: the samples that failed. Payload: the group of the others."""
        member = self._members[engine]
        method = member.handle.generate.options(num_returns=2)
        return call_of(member, method.remote(prompt, sample_indices))

    def abort(self, engine: int, prompt_ids: Sequence[str]) -> Call:
        """End what this engine samples for these prompts: their `generate` ends with failures."""
        member = self._members[engine]
        return call_of(member, member.handle.abort.remote(tuple(prompt_ids)))

    def hold(self) -> list[Call]:
        """From here on requests are taken but not started."""
        return [call_of(m, m.handle.hold.remote()) for m in self._members]

    def release(self, num_requests: Sequence[int]) -> list[Call]:
        """Start all that was held back, together: so many requests on each engine.

        Ray may start the methods of an asynchronous actor in another order than they were
        called in: wait for `hold` before the requests, and say here how many there are.
        """
        return [
            call_of(member, member.handle.release.remote(number))
            for member, number in zip(self._members, num_requests, strict=True)
        ]

    def begin_update(self) -> list[Call]:
        return [call_of(m, m.handle.begin_update.remote()) for m in self._members]

    def load_bucket(self, bucket: Any) -> list[Call]:
        """`bucket`: a reference, as `LearnerGroup.weight_buckets` gives them."""
        return [call_of(m, m.handle.load_bucket.remote(bucket)) for m in self._members]

    def finish_update(self, version: int) -> list[Call]:
        """Signal: the version that the engine reports afterwards."""
        return [call_of(m, m.handle.finish_update.remote(version)) for m in self._members]

    def weight_version(self) -> list[Call]:
        return [call_of(m, m.handle.weight_version.remote()) for m in self._members]

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        return [call_of(m, m.handle.score_sequences.remote(sequences)) for m in self._members]

    def score_shares(self, shares: Sequence[list[tuple[int, ...]]]) -> list[Call]:
        """As `score_sequences`, of sequences of its own for each engine."""
        return [
            call_of(member, member.handle.score_sequences.remote(share))
            for member, share in zip(self._members, shares, strict=True)
        ]

    def sleep(self) -> list[Call]:
        return [call_of(m, m.handle.sleep.remote()) for m in self._members]

    def wake_up(self) -> list[Call]:
        return [call_of(m, m.handle.wake_up.remote()) for m in self._members]


class GeneratorActor(ActorProcess):
    """One vLLM engine."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self._settings = settings

    async def start(self, gpu_ids: tuple[str, ...]) -> None:
        """Load the model; on these GPUs where it shares them with other actors."""
        if gpu_ids:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_ids)
        from rlhf_ray.generation.engine import GenerationEngine

        self._engine = GenerationEngine(**self._settings)
        await self._engine.start()

    async def generate(
        self, prompt: Prompt, sample_indices: tuple[int, ...]
    ) -> tuple[tuple[SampleFailure, ...], RolloutGroup]:
        group, failures = await self._engine.generate(prompt, sample_indices)
        return failures, group

    async def abort(self, prompt_ids: tuple[str, ...]) -> None:
        await self._engine.abort(prompt_ids)

    async def hold(self) -> None:
        await self._engine.hold()

    async def release(self, num_requests: int) -> None:
        await self._engine.release(num_requests)

    async def complete(self, asked: Sequence[Any], timeout_s: float) -> Sequence[Any]:
        return await self._engine.complete(asked, timeout_s=timeout_s)

    async def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[list[float]]:
        return await self._engine.score_sequences(sequences)

    async def begin_update(self) -> None:
        await self._engine.begin_update()

    async def load_bucket(self, bucket: Any) -> None:
        await self._engine.load_bucket(bucket)

    async def finish_update(self, version: int) -> int:
        await self._engine.finish_update(version)
        return await self._engine.weight_version()

    async def weight_version(self) -> int:
        return await self._engine.weight_version()

    async def sleep(self) -> None:
        await self._engine.sleep()

    async def wake_up(self) -> None:
        await self._engine.wake_up()

    async def close(self) -> None:
        await self._engine.close()
