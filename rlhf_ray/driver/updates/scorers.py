"""Reference, critic and old log-probabilities: what a batch is compared with before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.driver.rollouts.batch import Batch


class ScoringRole(Protocol):
    """See `cluster.roles.base.Ranks`."""

    def score(self, groups: Sequence[Any], num_tokens: Sequence[int]) -> list[Call]: ...


class NoScores:
    """The role is not part of this run."""

    def score(self, groups: Sequence[Any], num_tokens: Sequence[int]) -> list[Call]:
        del groups, num_tokens
        return []


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchScores:
    """References to `list[TokenValues]`, one per rank of each role that was asked."""

    reference: tuple[Any, ...]
    values: tuple[Any, ...]
    old: tuple[Any, ...]


class Scorers:
    """All three at the same time.

    Args:
        old: the learner, where log-probabilities from before the update are needed.
        untrained: the learner, in steps that do not train it: its log-probabilities are what
            the engine's are compared with.
        num_untrained_steps: how many of these there are at the start.
    """

    def __init__(
        self,
        *,
        reference: ScoringRole,
        critic: ScoringRole,
        old: ScoringRole,
        untrained: ScoringRole,
        num_untrained_steps: int,
        watch: CallWaiter,
        timeout_s: float,
    ) -> None:
        self._reference = reference
        self._critic = critic
        self._old = old
        self._untrained = untrained
        self._num_untrained_steps = num_untrained_steps
        self._watch = watch
        self._timeout_s = timeout_s

    def score(self, batch: Batch, step: int) -> BatchScores:
        """Per-token values of all groups of a batch."""
        num_tokens = [sum(summary.sample_lengths) for summary in batch.summaries]
        old = self._untrained if step < self._num_untrained_steps else self._old
        roles = (self._reference, self._critic, old)
        calls = [role.score(batch.groups, num_tokens) for role in roles]
        everything = [call for part in calls for call in part]
        self._watch.results(everything, phase="reference", timeout_s=self._timeout_s)
        reference, values, old = (tuple(call.payload for call in part) for part in calls)
        return BatchScores(reference=reference, values=values, old=old)
