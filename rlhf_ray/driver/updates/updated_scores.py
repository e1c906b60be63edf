"""Log-probabilities of a few answers after the update: how far a step has moved the policy."""

from __future__ import annotations

from typing import Any

from rlhf_ray.calls import CallWaiter
from rlhf_ray.driver.roles import TokenScorer
from rlhf_ray.driver.rollouts.batch import Batch
from rlhf_ray.prompt_choice import detailed_places


class NoUpdatedScores:
    """Null object of a run that does not record them."""

    def measure(self, batch: Batch, step: int) -> None: ...

    def take(self) -> tuple[Any, ...]:
        return ()


NO_UPDATED_SCORES = NoUpdatedScores()


class UpdatedScores:
    """Lets the learner score the prompts whose tokens are recorded, once more.

    Of a batch of any size these are `prompt_choice.DETAILED_PROMPTS` prompts with all their
    answers, so that a forward pass over them is a small part of a large update.

    Args:
        every_steps: steps between two measurements; step 0 is the first.
    """

    def __init__(
        self, learner: TokenScorer, waiter: CallWaiter, *, every_steps: int, timeout_s: float
    ) -> None:
        self._learner = learner
        self._waiter = waiter
        self._every_steps = every_steps
        self._timeout_s = timeout_s
        self._scores: tuple[Any, ...] = ()

    def measure(self, batch: Batch, step: int) -> None:
        """Score with the weights of now, if it is due.

        Raises:
            RunFailed: a rank failed or was late.
        """
        self._scores = ()
        if step % self._every_steps:
            return
        summaries = batch.fresh_summaries
        places = detailed_places([summary.prompt_rank for summary in summaries])
        groups = [batch.fresh_groups[place] for place in places]
        num_tokens = [sum(summaries[place].sample_lengths) for place in places]
        calls = self._learner.score(groups, num_tokens)
        self._waiter.results(calls, phase="update", timeout_s=self._timeout_s)
        self._scores = tuple(call.payload for call in calls)

    def take(self) -> tuple[Any, ...]:
        """References to the `list[TokenValues]` of every rank; empty if it was not due."""
        taken, self._scores = self._scores, ()
        return taken
