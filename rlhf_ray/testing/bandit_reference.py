"""The bandit's reference: a copy of the policy that may follow it. See `bandit`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rlhf_ray.algorithms.ema import moving_average
from rlhf_ray.calls import Call
from rlhf_ray.records import RolloutGroup
from rlhf_ray.testing.bandit_workers import VOCABULARY, Table, score_groups
from rlhf_ray.testing.fake_roles import FakeReference
from rlhf_ray.testing.fakes import done


class BanditReference(FakeReference):
    """The policy at the start, or an EMA of the policy since then.

    Args:
        decay: weight of the past in every update.
    """

    def __init__(self, *, decay: float) -> None:
        self._weights = Table(VOCABULARY).weights.detach()
        self._decay = decay

    def score(self, groups: Sequence[RolloutGroup], num_tokens: Sequence[int]) -> list[Call]:
        return [done("reference", 0, payload=score_groups(self._weights, groups))]

    def load_bucket(self, bucket: Tensor) -> list[Call]:
        self._weights = moving_average(self._weights, bucket, decay=self._decay)
        return [done("reference", 0)]
