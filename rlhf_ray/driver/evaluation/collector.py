"""Evaluation of one model: the engines answer given prompts, rewards and metrics follow."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_ray.calls import CallWaiter
from rlhf_ray.driver.roles import BuilderRole, RewardRole, SamplingEngines, TokenScorer
from rlhf_ray.driver.rollouts.failure_budget import FailureBudget
from rlhf_ray.driver.rollouts.in_flight import InFlight, ScoredPrompt
from rlhf_ray.evaluation.answers import MeasureSettings, PromptAnswers
from rlhf_ray.records import Prompt

_PHASE = "evaluate"


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectSettings:
    """Settings of an evaluation: samples, waves, deadline.

    Attributes:
        samples: number of sampled answers to each prompt.
        greedy: whether to ask for a greedy answer too.
        prompts_at_once: number of prompts that start together; the next ones start when all of
            them are done. The last bits of an engine's numbers depend on which requests share a
            step, so fixed waves make evaluations repeatable.
        max_failure_rate: see `reward.max_failure_rate`.
        timeout_s: deadline of all prompts of one `collect`.
    """

    samples: int
    greedy: bool
    prompts_at_once: int
    max_failure_rate: float
    timeout_s: float
    measure: MeasureSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """Results of an evaluation.

    Attributes:
        prompts: answers to the prompts that did not fail, in the order of the prompts.
        groups: references to their scored groups.
        failures: the first failure of every other prompt.
    """

    prompts: tuple[PromptAnswers, ...]
    groups: tuple[Any, ...]
    failures: tuple[str, ...]


class AnswerCollector:
    """Asks engines, rewards, reference and builder; see the module.

    Args:
        reference: model that sampled answers are compared with; `NoTokenScores` for no comparison.
        builder: reduces groups to numbers, in its own process.
    """

    def __init__(
        self,
        *,
        generators: SamplingEngines,
        rewards: RewardRole,
        reference: TokenScorer,
        builder: BuilderRole,
        waiter: CallWaiter,
        settings: CollectSettings,
    ) -> None:
        self._generators = generators
        self._rewards = rewards
        self._reference = reference
        self._builder = builder
        self._waiter = waiter
        self._settings = settings

    def collect(self, prompts: Sequence[Prompt]) -> Collected:
        """Let the engines answer every prompt with their current weights.

        A prompt with a failed sample has no result: a failure is never a reward.

        Raises:
            RunFailed: a worker failed or was late, or too many prompts failed.
        """
        deadline = time.monotonic() + self._settings.timeout_s
        budget = FailureBudget(self._settings.max_failure_rate)
        placed = [replace(prompt, stream_index=i) for i, prompt in enumerate(prompts)]
        found: list[PromptAnswers] = []
        groups: list[Any] = []
        failures: list[str] = []
        for wave in _pieces(placed, self._settings.prompts_at_once):
            answered = self._answer(wave, deadline)
            for scored in answered:
                budget.record(scored.summary.failures)
                failures += [str(failure) for failure in scored.summary.failures[:1]]
            good = [scored for scored in answered if not scored.summary.failures]
            found += self._measure(good, deadline)
            groups += [scored.group for scored in good]
        return Collected(prompts=tuple(found), groups=tuple(groups), failures=tuple(failures))

    def _answer(self, prompts: Sequence[Prompt], deadline: float) -> list[ScoredPrompt]:
        settings = self._settings
        in_flight = InFlight(
            generators=self._generators,
            rewards=self._rewards,
            waiter=self._waiter,
            samples_per_prompt=settings.samples,
            greedy=(settings.measure.greedy_from,) if settings.greedy else (),
            timeout_s=settings.timeout_s,
        )
        in_flight.start(0, prompts)
        answered: list[ScoredPrompt] = []
        while len(answered) < len(prompts):
            answered += in_flight.wait(_PHASE, _left_s(deadline))
        return sorted(answered, key=lambda scored: scored.prompt.stream_index)

    def _measure(self, answered: Sequence[ScoredPrompt], deadline: float) -> list[PromptAnswers]:
        if not answered:
            return []
        groups = [scored.group for scored in answered]
        num_tokens = [sum(scored.summary.sample_lengths) for scored in answered]
        scoring = self._reference.score(groups, num_tokens)
        self._waiter.results(scoring, phase=_PHASE, timeout_s=_left_s(deadline))
        reference = [call.payload for call in scoring]
        measuring = self._builder.measure(groups, reference, self._settings.measure)
        return self._waiter.results([measuring], phase=_PHASE, timeout_s=_left_s(deadline))[0]


def _left_s(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _pieces(prompts: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]
