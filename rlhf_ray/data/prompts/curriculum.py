"""Prompts drawn with weights by their recent rate of success."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from rlhf_ray.data.prompts.order import stable_seed
from rlhf_ray.data.prompts.stream import PromptStream
from rlhf_ray.data.rows import DataError
from rlhf_ray.records import GroupSummary, Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class CurriculumSettings:
    """See the keys of the same names in `config.sampling`."""

    target: float
    min_weight: float
    recency: float
    success_reward: float


def success_weight(rate: float, target: float) -> float:
    """How much a prompt with this rate of success is worth drawing, at most 1.

        w(p) = (p / t)^(2 t) * ((1 - p) / (1 - t))^(2 (1 - t))

    1 at p = t, 0 at p = 0 and p = 1. With t = 1/2 it is 4 p (1 - p), the learnability of
    Rutherford et al. 2024, No Regrets, arXiv:2408.15099, scaled to 1: the variance of an outcome
    of 0 or 1, and so the size of the signal that a group baseline gets out of it. Another t
    favours easier or harder prompts.

    Args:
        rate: from 0 to 1. target: above 0 and below 1.
    """
    easy = (rate / target) ** (2.0 * target)
    hard = ((1.0 - rate) / (1.0 - target)) ** (2.0 * (1.0 - target))
    return easy * hard


class CurriculumStream:
    """A prompt stream that leaves out prompts of which little is to be learnt.

    It walks the order of the stream below, and takes the prompt at each place with the
    probability of its weight, so that how often a prompt comes up over the epochs is
    proportional to its weight and no prompt comes twice in one epoch. A prompt without an
    outcome is always taken. The coin for a place depends on seed and place alone, and the weight
    on the outcomes that were recorded before: the same outcomes give the same prompts.

    The rate of success of a row is moved towards each new group by `recency`; its first group
    sets it.

    Args:
        stream: the order to walk; nobody else may take prompts from it.
        seed: of the run.
    """

    def __init__(self, stream: PromptStream, settings: CurriculumSettings, *, seed: int) -> None:
        self._stream = stream
        self._settings = settings
        self._seed = seed
        self._rates: dict[str, float] = {}

    def next(self) -> Prompt:
        """The next prompt that is taken; ends for certain, because no weight is 0."""
        while True:
            prompt = self._stream.next()
            coin = random.Random(stable_seed(self._seed, "curriculum", prompt.stream_index))
            if coin.random() < self.weight(prompt.prompt_id):
                return prompt

    def weight(self, prompt_id: str) -> float:
        """Probability with which the row of this prompt is taken."""
        rate = self._rates.get(_row(prompt_id))
        if rate is None:
            return 1.0
        return max(self._settings.min_weight, success_weight(rate, self._settings.target))

    def record(self, outcome: GroupSummary) -> None:
        """Learn how the samples of a prompt were rewarded."""
        if not outcome.rewards:
            return
        successes = sum(reward >= self._settings.success_reward for reward in outcome.rewards)
        newest, row = successes / len(outcome.rewards), _row(outcome.prompt_id)
        before = self._rates.get(row, newest)
        self._rates[row] = before + self._settings.recency * (newest - before)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream below stands, and the rate of success of every row seen so far."""
        return {"stream": self._stream.state_dict(), "success_rates": dict(self._rates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the same prompts as if there had been no stop.

        Raises:
            DataError: the state is of another stream, or of one without a curriculum.
        """
        if "success_rates" not in state:
            raise DataError(
                "the checkpoint is of a run without a curriculum. Resume with "
                "sampling.curriculum=false, or start anew with resume=never"
            )
        self._stream.load_state_dict(state["stream"])
        self._rates = dict(state["success_rates"])


def _row(prompt_id: str) -> str:
    """The row's own id: that of the prompt without its epoch."""
    return prompt_id.partition("-")[2]
