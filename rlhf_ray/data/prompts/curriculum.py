"""Curriculum: prompts drawn with weights that depend on their recent success rate."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from rlhf_ray.algorithms.equality import reaches
from rlhf_ray.data.prompts.order import stable_seed
from rlhf_ray.data.prompts.stream import PromptStream
from rlhf_ray.data.rows import DataError
from rlhf_ray.records import GroupSummary, Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class CurriculumSettings:
    """See the keys of the same names in `config.rollout_selection`."""

    target: float
    min_weight: float
    recency: float
    success_reward: float


def success_weight(rate: float, target: float) -> float:
    """Weight of a prompt with this success rate, at most 1.

        w(p) = (p / t)^(2 t) * ((1 - p) / (1 - t))^(2 (1 - t))

    1 at p = t, 0 at p = 0 and p = 1. With t = 1/2 it is 4 p (1 - p), the learnability of
    Rutherford et al. 2024, No Regrets, arXiv:2408.15099, scaled to 1: the variance of an outcome
    of 0 or 1, and so the size of the learning signal with a group baseline. Another t favours
    easier or harder prompts.

    Args:
        rate: from 0 to 1. target: above 0 and below 1.
    """
    easy = (rate / target) ** (2.0 * target)
    hard = ((1.0 - rate) / (1.0 - target)) ** (2.0 * (1.0 - target))
    return easy * hard


class CurriculumStream:
    """A prompt stream that skips prompts from which the policy would learn little.

    The curriculum walks the inner stream and takes the prompt at each place with a probability
    equal to its weight. So over the epochs a prompt occurs in proportion to its weight, and never
    twice in one epoch. A prompt without an outcome is always taken. The random number of a place
    depends only on seed and place, and the weight only on earlier outcomes: the same outcomes give
    the same prompts.

    The success rate of a row is an exponential moving average over its groups, with `recency` as
    the weight of the newest group. It starts at the rate of the first group.

    Args:
        stream: the inner stream; no other reader may take prompts from it.
        seed: of the run.
    """

    def __init__(self, stream: PromptStream, settings: CurriculumSettings, *, seed: int) -> None:
        self._stream = stream
        self._settings = settings
        self._seed = seed
        self._rates: dict[str, float] = {}

    def next(self) -> Prompt:
        """The next prompt that is taken; the search ends, because no weight is 0."""
        while True:
            prompt = self._stream.next()
            coin = random.Random(stable_seed(self._seed, "curriculum", prompt.stream_index))
            if coin.random() < self.weight(prompt.prompt_id):
                return prompt

    def weight(self, prompt_id: str) -> float:
        """Probability that the row of this prompt is taken."""
        rate = self._rates.get(_row(prompt_id))
        if rate is None:
            return 1.0
        return max(self._settings.min_weight, success_weight(rate, self._settings.target))

    def record(self, outcome: GroupSummary) -> None:
        """Update the success rate of a prompt's row with the rewards of a group."""
        if not outcome.rewards:
            return
        successes = sum(
            reaches(reward, self._settings.success_reward) for reward in outcome.rewards
        )
        newest, row = successes / len(outcome.rewards), _row(outcome.prompt_id)
        before = self._rates.get(row, newest)
        self._rates[row] = before + self._settings.recency * (newest - before)

    def state_dict(self) -> dict[str, Any]:
        """Position of the inner stream, and the success rate of every row seen so far."""
        return {"stream": self._stream.state_dict(), "success_rates": dict(self._rates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the same prompts as an uninterrupted run.

        Raises:
            DataError: the state is of another stream, or of a stream without a curriculum.
        """
        if "success_rates" not in state:
            raise DataError(
                "the checkpoint is of a run without a curriculum. Resume with "
                "rollout_selection.curriculum=false, or start again with resume=never"
            )
        self._stream.load_state_dict(state["stream"])
        self._rates = dict(state["success_rates"])


def _row(prompt_id: str) -> str:
    """The id of the row: the prompt's id without the epoch."""
    return prompt_id.partition("-")[2]
