"""The roles as Ray actors.

Each class imports its worker in its own process only, takes object references as plain
arguments (Ray resolves those and no nested ones), and returns a small signal first and a large
result second, so that the driver can learn of an error without fetching the result.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_ray.cluster.runtime.process import ActorProcess
from rlhf_ray.records import (
    Coefficients,
    Experience,
    GroupSummary,
    Prompt,
    RolloutGroup,
    SampleFailure,
)
from rlhf_ray.records.supervised import SupervisedSamples

# Ranks of one role, in order, and where rank 0 listens.
Address = tuple[str, int]
# What a learner can give away: its weights, the adapter that it trains, its moving average.
POLICY, ADAPTER, AVERAGE = "policy", "adapter", "average"


class Generator(ActorProcess):
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


class Reward(ActorProcess):
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


class _Ranked(ActorProcess):
    """What the DeepSpeed roles have in common."""

    _worker: Any

    def start(self, rank: int, world_size: int, address: Address) -> None:
        self._worker.start(rank, world_size, *address)

    def score(self, *groups: RolloutGroup) -> tuple[None, Any]:
        return None, self._worker.score(groups)

    def close(self) -> None:
        self._worker.close()


class _Saved(_Ranked):
    """What the roles with a folder in a checkpoint have in common."""

    def save_checkpoint(self, folder: Path) -> None:
        self._worker.save_checkpoint(folder)

    def load_checkpoint(self, folder: Path) -> None:
        self._worker.load_checkpoint(folder)


class _Trained(_Saved):
    """What learner and critic have in common."""

    def offload_states(self) -> None:
        self._worker.offload_states()

    def reload_states(self) -> None:
        self._worker.reload_states()


class Fitted(_Trained):
    """What the roles that learn from examples have in common."""

    def update(self, steps: Sequence[Any]) -> dict[str, float]:
        return self._worker.update(steps)

    def evaluate(self, samples: Any) -> dict[str, float]:
        return self._worker.evaluate(samples)

    def save_model(self, folder: Path) -> None:
        self._worker.save_model(folder)


class Imitator(Fitted):
    """One rank of a language model that learns from texts or demonstrations."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        from rlhf_ray.training.roles.sft_trainer import Imitator as Worker

        self._worker = Worker(**settings)


class RewardTrainer(Fitted):
    """One rank of a reward model that learns from rankings."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        from rlhf_ray.training.roles.reward_model_trainer import RewardTrainer as Worker

        self._worker = Worker(**settings)


class Learner(_Trained):
    """One rank of the policy in training."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        from rlhf_ray.training.roles.learner import Learner as Worker

        self._worker = Worker(**settings)
        self._buffer = np.empty(0, dtype=np.uint8)

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[list[float]]:
        return self._worker.score_sequences(sequences)

    def score_reference(self, *groups: RolloutGroup) -> tuple[None, Any]:
        return None, self._worker.score_reference(groups)

    def update(
        self,
        experiences: Sequence[Experience],
        texts: Sequence[SupervisedSamples],
        coefficients: Coefficients,
    ) -> dict[str, float]:
        return self._worker.update(experiences, texts=texts, coefficients=coefficients)

    def weight_buckets(self, bucket_bytes: int, what: str) -> Iterator[Any]:
        """A stream of signals and buckets; the rank that is asked gives the weights away."""
        from rlhf_ray.publish.bucket import pack_buckets

        if self._buffer.shape[0] != bucket_bytes:
            self._buffer = np.empty(bucket_bytes, dtype=np.uint8)
        # One buffer for all buckets: Ray has copied an item into its store when `yield` returns.
        for bucket in pack_buckets(self._given(what), bucket_bytes, self._buffer):
            yield None
            yield bucket

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return self._worker.weight_shapes()

    def join_gathering(self, what: str) -> None:
        """Take part in the gathering of sharded weights for the rank that gives them away."""
        for _ in self._given(what):
            pass

    def _given(self, what: str) -> Iterator[Any]:
        if what == ADAPTER:
            return self._worker.adapter_weights()
        return self._worker.average_weights() if what == AVERAGE else self._worker.named_weights()

    def save_model(self, folder: Path) -> None:
        self._worker.save_model(folder)

    def save_average(self, folder: Path) -> None:
        self._worker.save_average(folder)


class Critic(_Trained):
    """One rank of the critic."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        from rlhf_ray.training.roles.critic import Critic as Worker

        self._worker = Worker(**settings)

    def update(self, experiences: Sequence[Experience]) -> dict[str, float]:
        return self._worker.update(experiences)


class Reference(_Saved):
    """One rank of the reference."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        from rlhf_ray.training.roles.reference import Reference as Worker

        self._worker = Worker(**settings)

    def check_weights(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._worker.check_weights(shapes)

    def begin_update(self) -> None:
        self._worker.begin_update()

    def load_bucket(self, bucket: Any) -> None:
        self._worker.load_bucket(bucket)

    def finish_update(self) -> None:
        self._worker.finish_update()
