"""The learner in the places of others: see `groups.Learners`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_ray.calls import Call
from rlhf_ray.cluster.groups import Learners
from rlhf_ray.cluster.roles.base import ADAPTER, AVERAGE


class PolicyWithoutAdapter:
    """The reference: what the policy's ranks compute with their adapter switched off."""

    def __init__(self, learners: Learners) -> None:
        self._learners = learners

    def score(self, groups: Sequence[Any], num_tokens: Sequence[int]) -> list[Call]:
        """See `groups.Ranks.score`."""
        return self._learners.score_reference(groups, num_tokens)


class AdapterAlone:
    """A source of weights that gives the adapter away, and keeps what never changes."""

    def __init__(self, learners: Learners) -> None:
        self._learners = learners

    def weight_buckets(self, bucket_bytes: int) -> tuple[Call, list[Call]]:
        """See `groups.Learners.weight_buckets`."""
        return self._learners.weight_buckets(bucket_bytes, what=ADAPTER)

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        return self._learners.score_sequences(sequences)


class AverageAlone:
    """A source of weights that gives the moving average away (`training.ema_decay`)."""

    def __init__(self, learners: Learners) -> None:
        self._learners = learners

    def weight_buckets(self, bucket_bytes: int) -> tuple[Call, list[Call]]:
        """See `groups.Learners.weight_buckets`."""
        return self._learners.weight_buckets(bucket_bytes, what=AVERAGE)
