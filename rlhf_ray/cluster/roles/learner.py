"""The learner: the policy in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_ray.calls import Call
from rlhf_ray.cluster.roles.base import (
    Role,
    call_of,
    rank_resources,
    start_ranks,
)
from rlhf_ray.cluster.roles.checkpointed import TrainedActor, TrainedGroup
from rlhf_ray.disk_space import full_disk_said
from rlhf_ray.publish.base import ADAPTER, AVERAGE, POLICY

if TYPE_CHECKING:
    import numpy as np

    from rlhf_ray.config.groups.algorithm import AlgorithmConfig
    from rlhf_ray.config.groups.model import ModelConfig
    from rlhf_ray.config.groups.training import TrainingConfig
    from rlhf_ray.publish.channel import ChannelSettings, StoreAddress
    from rlhf_ray.publish.plan import WeightSpec
    from rlhf_ray.records import Coefficients, Experience, RolloutGroup
    from rlhf_ray.records.supervised import SupervisedSamples


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerSettings:
    """Settings of a rank; see `training.roles.learner.Learner`."""

    training: TrainingConfig
    algorithm: AlgorithmConfig
    model: ModelConfig
    max_response_tokens: int
    temperature: float
    total_optimizer_steps: int
    seed: int
    timeout_s: float


def learner_role(settings: LearnerSettings, *, shares_bundles_of: str | None) -> Role:
    """The learner; `shares_bundles_of` names the engines' role in a colocated run."""
    return Role(
        resources=rank_resources("learner", settings.training, shares_bundles_of=shares_bundles_of),
        actor_class=LearnerActor,
        settings=lambda _: settings,
        start=start_ranks,
        ranks_per_sample=settings.training.ranks_per_sample,
        starts_after=shares_bundles_of,
    )


class LearnerActor(TrainedActor):
    """One rank of the learner."""

    def __init__(self, settings: LearnerSettings) -> None:
        super().__init__()
        from rlhf_ray.publish.sending import SendingEnd
        from rlhf_ray.training.roles.learner import Learner

        self._worker = Learner(
            training=settings.training,
            algorithm=settings.algorithm,
            model=settings.model,
            max_response_tokens=settings.max_response_tokens,
            temperature=settings.temperature,
            total_optimizer_steps=settings.total_optimizer_steps,
            seed=settings.seed,
            timeout_s=settings.timeout_s,
        )
        self._buffer: np.ndarray | None = None
        self._end = SendingEnd()

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
        import numpy as np

        from rlhf_ray.publish.bucket import pack_buckets

        if self._buffer is None or self._buffer.shape[0] != bucket_bytes:
            self._buffer = np.empty(bucket_bytes, dtype=np.uint8)
        # One buffer for all buckets: Ray has copied an item into its store when `yield` returns.
        for bucket in pack_buckets(self._given(what), bucket_bytes, self._buffer):
            yield None
            yield bucket

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return self._worker.weight_shapes()

    def weight_specs(self) -> list[WeightSpec]:
        return self._worker.weight_specs()

    def listen_for_receivers(self) -> StoreAddress:
        import ray

        return self._end.listen(ray.util.get_node_ip_address())

    def open_channel(self, settings: ChannelSettings, rank: int) -> str:
        from rlhf_ray.training.engine.ranks import training_device

        return self._end.open(settings, rank, training_device())

    def send_weights(self, what: str) -> str:
        return self._end.send(self._given(what))

    def close_channel(self) -> None:
        self._end.close()

    def join_gathering(self, what: str) -> None:
        """Take part in the gathering of sharded weights for the rank that gives them away."""
        for _ in self._given(what):
            pass

    def _given(self, what: str) -> Iterator[Any]:
        if what == ADAPTER:
            return self._worker.adapter_weights()
        return self._worker.average_weights() if what == AVERAGE else self._worker.named_weights()

    def save_model(self, folder: Path) -> None:
        with full_disk_said(folder):
            self._worker.save_model(folder)

    def save_average(self, folder: Path) -> None:
        with full_disk_said(folder):
            self._worker.save_average(folder)


class LearnerGroup(TrainedGroup):
    """All ranks of the learner."""

    def score_reference(self, groups: Sequence[Any], num_tokens: Sequence[int]) -> list[Call]:
        """Score groups with the adapter switched off; see `RankGroup.score`."""
        methods = [m.handle.score_reference for m in self._members]
        return self._scattered(methods, groups, num_tokens)

    def update(
        self, experiences: Sequence[Any], *, texts: Sequence[Any], coefficients: Coefficients
    ) -> list[Call]:
        """One update of the policy.

        Args:
            experiences: a reference per group of ranks.
            texts: per group, its texts of every optimiser step, or none. They are an argument of
                the call, not part of `coefficients`: Ray stores a large argument once and passes
                a reference.

        Returns:
            calls with metrics as signal, the same on every rank.
        """
        shares = [*zip(experiences, texts, strict=True)]
        return [
            call_of(member, member.handle.update.remote(experience, own, coefficients))
            for member, (experience, own) in self._with_share(shares)
        ]

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        return [call_of(m, m.handle.score_sequences.remote(sequences)) for m in self._members]

    def weight_buckets(self, bucket_bytes: int, *, what: str = POLICY) -> tuple[Call, list[Call]]:
        """A stream of bucket references from rank 0; and the other ranks' part in it.

        Args:
            what: `POLICY`, `ADAPTER` or `AVERAGE`.
        """
        first = self._members[0]
        # Two buckets at most exist at a time, one in flight and one packed, with their signals.
        stream = first.handle.weight_buckets.options(
            num_returns="streaming", _generator_backpressure_num_objects=4
        ).remote(bucket_bytes, what)
        others = [call_of(m, m.handle.join_gathering.remote(what)) for m in self._members[1:]]
        return Call(member=first.name, signal=stream, payload=None), others

    def weight_specs(self) -> Call:
        """Signal: names, dtypes and whole shapes of the weights, in the order of sending."""
        first = self._members[0]
        return call_of(first, first.handle.weight_specs.remote())

    def listen_for_receivers(self) -> list[Call]:
        """Signal: the address at which the receivers of a channel find the rank."""
        return [call_of(m, m.handle.listen_for_receivers.remote()) for m in self._members]

    def open_channel(self, settings: ChannelSettings) -> list[Call]:
        """Signal: the text of a failure, or ""."""
        return [
            call_of(member, member.handle.open_channel.remote(settings, rank))
            for rank, member in enumerate(self._members)
        ]

    def send_weights(self, what: str) -> list[Call]:
        """Send through the channel, all ranks together. Signal: like that of `open_channel`.

        Args:
            what: `POLICY` or `AVERAGE`.
        """
        return [call_of(m, m.handle.send_weights.remote(what)) for m in self._members]

    def close_channel(self) -> list[Call]:
        return [call_of(m, m.handle.close_channel.remote()) for m in self._members]

    def weight_shapes(self) -> Call:
        """Signal: names and shapes of the weights of `weight_buckets`, in that order."""
        first = self._members[0]
        return call_of(first, first.handle.weight_shapes.remote())

    def save_model(self, folder: Path) -> list[Call]:
        return [call_of(m, m.handle.save_model.remote(folder)) for m in self._members]

    def save_average(self, folder: Path) -> list[Call]:
        return [call_of(m, m.handle.save_average.remote(folder)) for m in self._members]


class PolicyWithoutAdapter:
    """The reference of a LoRA run: the policy's ranks with their adapter switched off."""

    def __init__(self, learners: LearnerGroup) -> None:
        self._learners = learners

    def score(self, groups: Sequence[Any], num_tokens: Sequence[int]) -> list[Call]:
        """See `RankGroup.score`."""
        return self._learners.score_reference(groups, num_tokens)
