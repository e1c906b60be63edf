"""The generator: vLLM engines that sample, score sequences and take new weights.

The group, which the driver calls, is in `cluster.engines.group`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from rlhf_ray.calls import Call
from rlhf_ray.cluster.resource_plan import Resources
from rlhf_ray.cluster.roles.base import Role, Starting, call_of
from rlhf_ray.cluster.runtime.process import ActorProcess

if TYPE_CHECKING:
    from rlhf_ray.cluster.runtime.supervisor import Member
    from rlhf_ray.config.groups.generation import GenerationConfig
    from rlhf_ray.config.groups.lora import LoraConfig
    from rlhf_ray.config.groups.model import ModelConfig
    from rlhf_ray.publish.base import EnginePart
    from rlhf_ray.publish.channel import ChannelSettings
    from rlhf_ray.records import Prompt, RolloutGroup, SampleFailure


SIGNS_OF_LIFE = "signs_of_life"


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """Settings of an engine: the arguments of `generation.engine.GenerationEngine`, and one more.

    Attributes:
        answers_by_files: no update replaces the weights of the files, so that these are looked at.
            Those of an update come from a learner, whose weights were.
    """

    generation: GenerationConfig
    model: ModelConfig
    max_sequence_tokens: int
    greedy_from: int
    request_timeout_s: float
    engine_index: int = 0
    with_text_ends: bool = False
    lora: LoraConfig | None = None
    keeps_cache: bool = False
    shares_gpus: bool = False
    answers_by_files: bool = False


def generator_role(settings: EngineSettings, *, shares_gpus_of: str | None) -> Role:
    """The engines of a run.

    Args:
        shares_gpus_of: the role of the trained ranks that lie in the engines' bundles (the
            hybrid engine). The engines then ask Ray for no GPU: they use those of the ranks.
    """
    settings = replace(settings, shares_gpus=shares_gpus_of is not None)
    return engines_role("generator", settings, first_index=0, shares_gpus_of=shares_gpus_of)


def engines_role(
    name: str, settings: EngineSettings, *, first_index: int, shares_gpus_of: str | None = None
) -> Role:
    """Engines under any name; the judge has some, too.

    Args:
        first_index: index of the first of them among all engines of the run.
    """
    generation = settings.generation

    def start(members: Sequence[Member], starting: Starting) -> list[Call]:
        gpus = _shared_gpus(len(members), starting, shares_gpus_of)
        bundles = starting.plan.role(name).worker_bundles or [()] * len(members)
        return [
            call_of(member, member.handle.start.remote(own, workers))
            for member, own, workers in zip(members, gpus, bundles, strict=True)
        ]

    has_gpus = not (shares_gpus_of or generation.spans_nodes)
    return Role(
        resources=Resources(
            role=name,
            num_actors=generation.num_engines,
            num_cpus=generation.num_cpus,
            num_gpus=generation.num_workers * generation.num_gpus if has_gpus else 0.0,
            workers_per_actor=generation.num_workers if generation.spans_nodes else 0,
        ),
        actor_class=GeneratorActor,
        settings=lambda rank: replace(settings, engine_index=first_index + rank),
        start=start,
    )


def _shared_gpus(
    num_engines: int, starting: Starting, shares_gpus_of: str | None
) -> list[tuple[str, ...]]:
    """GPUs of the trained ranks in each engine's bundle; none where the engines have their own."""
    if shares_gpus_of is None:
        return [()] * num_engines
    ranks = starting.by_role[shares_gpus_of]
    per_engine = len(ranks) // num_engines
    return [
        tuple(
            gpu
            for rank in ranks[engine * per_engine : (engine + 1) * per_engine]
            for gpu in rank.info.gpu_ids
        )
        for engine in range(num_engines)
    ]


class GeneratorActor(ActorProcess):
    """One vLLM engine."""

    # Signs of life do not wait behind requests, however many there are.
    concurrency_groups: ClassVar[dict[str, int]] = {SIGNS_OF_LIFE: 2}
    # A request is a call until its answer. Those that start together wait for the last of them,
    # so that with Ray's thousand at a time a larger batch would never start.
    max_calls: ClassVar[int] = 1_000_000

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__()
        self._settings = settings
        # Engines that share GPUs, or whose workers do, are told at their start which they see.
        if not (settings.shares_gpus or settings.generation.spans_nodes):
            from rlhf_ray.generation.llm import import_vllm

            import_vllm(settings.generation, engine_index=settings.engine_index)

    async def start(self, gpu_ids: tuple[str, ...], worker_bundles: tuple[int, ...] = ()) -> float:
        """Load the model.

        Args:
            gpu_ids: GPUs that it shares with other actors.
            worker_bundles: bundles of the run for its workers, where they are not in this one.

        Returns:
            seconds that it took.

        Raises:
            RequestError: see `check_weight_files`, and `GenerationEngine.start`.
        """
        started = time.monotonic()
        if worker_bundles:
            # vLLM's Ray executor puts a worker into each, in this order.
            os.environ["VLLM_RAY_BUNDLE_INDICES"] = ",".join(map(str, worker_bundles))
        if gpu_ids:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_ids)
        from rlhf_ray.generation.engine import GenerationEngine

        self._loop = asyncio.get_running_loop()
        settings = {f.name: getattr(self._settings, f.name) for f in fields(self._settings)}
        if settings.pop("answers_by_files"):
            # Here: torch, which reads its number of threads when it is imported.
            from rlhf_ray.models.checks.finite_files import check_weight_files

            await asyncio.to_thread(check_weight_files, self._settings.model.path)
        self._engine = GenerationEngine(**settings)
        await self._engine.start()
        # The ranks that share its GPUs load their model next. The first publish brings the weights.
        await self._engine.sleeping.begin()
        return time.monotonic() - started

    async def generate(
        self, prompt: Prompt, sample_indices: tuple[int, ...], together: int
    ) -> tuple[tuple[SampleFailure, ...], RolloutGroup]:
        group, failures = await self._engine.generate(prompt, sample_indices, together=together)
        return failures, group

    async def abort(self, prompt_ids: tuple[str, ...]) -> None:
        await self._engine.abort(prompt_ids)

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

    async def num_workers(self) -> int:
        return self._engine.num_workers

    async def open_channel(self, settings: ChannelSettings) -> str:
        return await self._engine.updates.open_channel(settings)

    async def receive_weights(self, version: int) -> str:
        return await self._engine.updates.receive(version)

    async def close_channel(self) -> None:
        await self._engine.updates.close_channel()

    async def update_seconds(self) -> dict[str, float]:
        return self._engine.updates.seconds

    async def weight_version(self) -> int:
        return await self._engine.weight_version()

    async def statistics(self) -> dict[str, float]:
        return self._engine.statistics.take()

    async def sleep(self) -> None:
        await self._engine.sleeping.begin()

    async def wake_up(self, part: EnginePart) -> None:
        await self._engine.sleeping.end(part)

    async def ping(self) -> None:
        """Answer when the loop that serves requests and vLLM's engine process have answered.

        While it takes new weights, vLLM's process may not do so for long. Then the deadlines of
        the publish hold, and this answers without it.
        """
        # This runs in another thread, because it is in a group of its own.
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._check(), self._loop))

    async def _check(self) -> None:
        if self._engine.updates.is_pausing:
            await self._engine.check()
        else:
            await self._engine.weight_version()

    async def close(self) -> None:
        await self._engine.close()
