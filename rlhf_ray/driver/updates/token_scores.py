"""Reference log-probabilities, values and old log-probabilities of a batch, before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.driver.roles import TokenScorer
from rlhf_ray.driver.rollouts.batch import Batch


class NoTokenScores:
    """Null object of a role that is not part of the run."""

    def score(self, groups: Sequence[Any], num_tokens: Sequence[int]) -> list[Call]:
        del groups, num_tokens
        return []


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchTokenScores:
    """References to `list[TokenValues]`, one per rank; empty for a role that was not asked."""

    reference: tuple[Any, ...]
    values: tuple[Any, ...]
    old: tuple[Any, ...]


class TokenScorers:
    """Asks reference, critic and learner at the same time.

    Args:
        old: the learner, if log-probabilities from before the update are needed.
        untrained: the learner, in the first steps, which only train the critic. The engines'
            log-probabilities are compared with the learner's also in these steps.
        num_untrained_steps: number of steps at the start that only train the critic.
    """

    def __init__(
        self,
        *,
        reference: TokenScorer,
        critic: TokenScorer,
        old: TokenScorer,
        untrained: TokenScorer,
        num_untrained_steps: int,
        waiter: CallWaiter,
        timeout_s: float,
    ) -> None:
        self._reference = reference
        self._critic = critic
        self._old = old
        self._untrained = untrained
        self._num_untrained_steps = num_untrained_steps
        self._waiter = waiter
        self._timeout_s = timeout_s

    def score(self, batch: Batch, step: int) -> BatchTokenScores:
        """Per-token values of all groups of a batch.

        Raises:
            RunFailed: a worker failed or was late.
        """
        num_tokens = [sum(summary.sample_lengths) for summary in batch.summaries]
        old = self._untrained if step < self._num_untrained_steps else self._old
        roles = (self._reference, self._critic, old)
        calls = [role.score(batch.groups, num_tokens) for role in roles]
        everything = [call for part in calls for call in part]
        self._waiter.results(everything, phase="reference", timeout_s=self._timeout_s)
        reference, values, old = (tuple(call.payload for call in part) for part in calls)
        return BatchTokenScores(reference=reference, values=values, old=old)
