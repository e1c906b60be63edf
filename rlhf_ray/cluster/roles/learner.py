"""The learner: actor, facade, and the facades that give parts of it away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_ray.calls import Call
from rlhf_ray.cluster.roles.base import TrainedActor, TrainedGroup, call_of
from rlhf_ray.records import Coefficients, Experience, RolloutGroup
from rlhf_ray.records.supervised import SupervisedSamples

# What a learner can give away: its weights, the adapter that it trains, its moving average.
POLICY, ADAPTER, AVERAGE = "policy", "adapter", "average"


class LearnerGroup(TrainedGroup):
    """All ranks of the learner."""

    def score_reference(self, groups: Sequence[Any], num_tokens: Sequence[int]) -> list[Call]:
        """As `score`, with the adapter switched off."""
        methods = [m.handle.score_reference for m in self._members]
        return self._scattered(methods, groups, num_tokens)

    def update(
        self, experiences: Sequence[Any], *, texts: Sequence[Any], coefficients: Coefficients
    ) -> list[Call]:
        """One update of the policy.

        Args:
            experiences: a reference per rank.
            texts: per rank, its texts of every optimiser step, or none. As an argument of their
                own they travel like any large one: Ray stores them once and passes a reference.

        Returns:
            calls with metrics as signal, the same on every rank.
        """
        return [
            call_of(member, member.handle.update.remote(experience, mine, coefficients))
            for member, experience, mine in zip(self._members, experiences, texts, strict=True)
        ]

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        return [call_of(m, m.handle.score_sequences.remote(sequences)) for m in self._members]

    def weight_buckets(self, bucket_bytes: int, *, what: str = POLICY) -> tuple[Call, list[Call]]:
        """A stream of bucket references from rank 0; and the other ranks' part in it.

        Args:
            what: `POLICY`, `ADAPTER` or `AVERAGE` of `actors`.
        """
        first = self._members[0]
        # Two buckets at most exist at a time, one under way and one packed, with their signals.
        stream = first.handle.weight_buckets.options(
            num_returns="streaming", _generator_backpressure_num_objects=4
        ).remote(bucket_bytes, what)
        others = [call_of(m, m.handle.join_gathering.remote(what)) for m in self._members[1:]]
        return Call(member=first.name, signal=stream, payload=None), others

    def weight_shapes(self) -> Call:
        """Signal: names and shapes of what `weight_buckets` gives away, in that order."""
        first = self._members[0]
        return call_of(first, first.handle.weight_shapes.remote())

    def save_model(self, folder: Path) -> list[Call]:
        return [call_of(m, m.handle.save_model.remote(folder)) for m in self._members]

    def save_average(self, folder: Path) -> list[Call]:
        return [call_of(m, m.handle.save_average.remote(folder)) for m in self._members]


class LearnerActor(TrainedActor):
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


class PolicyWithoutAdapter:
    """The reference: what the policy's ranks compute with their adapter switched off."""

    def __init__(self, learners: LearnerGroup) -> None:
        self._learners = learners

    def score(self, groups: Sequence[Any], num_tokens: Sequence[int]) -> list[Call]:
        """See `groups.RankGroup.score`."""
        return self._learners.score_reference(groups, num_tokens)


class AdapterAlone:
    """A source of weights that gives the adapter away, and keeps what never changes."""

    def __init__(self, learners: LearnerGroup) -> None:
        self._learners = learners

    def weight_buckets(self, bucket_bytes: int) -> tuple[Call, list[Call]]:
        """See `groups.LearnerGroup.weight_buckets`."""
        return self._learners.weight_buckets(bucket_bytes, what=ADAPTER)

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        return self._learners.score_sequences(sequences)


class AverageAlone:
    """A source of weights that gives the moving average away (`training.ema_decay`)."""

    def __init__(self, learners: LearnerGroup) -> None:
        self._learners = learners

    def weight_buckets(self, bucket_bytes: int) -> tuple[Call, list[Call]]:
        """See `groups.LearnerGroup.weight_buckets`."""
        return self._learners.weight_buckets(bucket_bytes, what=AVERAGE)
