"""Answers of the engines to given prompts, scored and measured: an evaluation of one model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.driver.roles import GeneratorPool, RewardPool
from rlhf_ray.driver.rollouts.failure_budget import FailureBudget
from rlhf_ray.driver.rollouts.flights import InFlight, ScoredPrompt
from rlhf_ray.driver.updates.scorers import ScoringRole
from rlhf_ray.evaluation.answers import MeasureSettings, PromptAnswers
from rlhf_ray.records import Prompt

_PHASE = "evaluate"


class AnswerMeter(Protocol):
    """See `cluster.roles.builder.Builders`."""

    def measure(
        self, groups: Sequence[Any], reference: Sequence[Any], settings: MeasureSettings
    ) -> Call: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectSettings:
    """How prompts are answered.

    Attributes:
        samples: sampled answers to each prompt.
        greedy: whether there is a greedy one too.
        prompts_at_once: so many prompts start together, and the next ones when all are done:
            what an engine computes depends in its last bits on what shares a step.
        max_failure_rate: see `reward.max_failure_rate`.
        timeout_s: for all prompts of one `collect`.
    """

    samples: int
    greedy: bool
    prompts_at_once: int
    max_failure_rate: float
    timeout_s: float
    measure: MeasureSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """What became of the prompts.

    Attributes:
        prompts: those with a result, in their order.
        groups: references to their scored groups.
        failures: of each of the others, why it has none.
    """

    prompts: tuple[PromptAnswers, ...]
    groups: tuple[Any, ...]
    failures: tuple[str, ...]


class AnswerCollector:
    """Asks engines, rewards and reference; see the module.

    Args:
        reference: what sampled answers are compared with; `NoScores` where that is not asked for.
        examiner: reduces groups to numbers, away from the driver.
    """

    def __init__(
        self,
        *,
        generators: GeneratorPool,
        rewards: RewardPool,
        reference: ScoringRole,
        meter: AnswerMeter,
        watch: CallWaiter,
        settings: CollectSettings,
    ) -> None:
        self._generators = generators
        self._rewards = rewards
        self._reference = reference
        self._meter = meter
        self._watch = watch
        self._settings = settings

    def collect(self, prompts: Sequence[Prompt]) -> Collected:
        """Every prompt answered by the engines as they are now.

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
            landings = self._answered(wave, deadline)
            for landing in landings:
                budget.record(landing.summary.failures)
                failures += [str(failure) for failure in landing.summary.failures[:1]]
            good = [landing for landing in landings if not landing.summary.failures]
            found += self._examined(good, deadline)
            groups += [landing.group for landing in good]
        return Collected(prompts=tuple(found), groups=tuple(groups), failures=tuple(failures))

    def _answered(self, prompts: Sequence[Prompt], deadline: float) -> list[ScoredPrompt]:
        settings = self._settings
        flights = InFlight(
            generators=self._generators,
            rewards=self._rewards,
            watch=self._watch,
            samples_per_prompt=settings.samples,
            greedy=(settings.measure.greedy_from,) if settings.greedy else (),
            timeout_s=settings.timeout_s,
        )
        flights.start(0, prompts)
        landings: list[ScoredPrompt] = []
        while len(landings) < len(prompts):
            landings += flights.wait(_PHASE, _left_s(deadline))
        return sorted(landings, key=lambda landing: landing.prompt.stream_index)

    def _examined(self, landings: Sequence[ScoredPrompt], deadline: float) -> list[PromptAnswers]:
        if not landings:
            return []
        groups = [landing.group for landing in landings]
        num_tokens = [sum(landing.summary.sample_lengths) for landing in landings]
        scored = self._reference.score(groups, num_tokens)
        self._watch.results(scored, phase=_PHASE, timeout_s=_left_s(deadline))
        reference = [call.payload for call in scored]
        examined = self._meter.measure(groups, reference, self._settings.measure)
        return self._watch.results([examined], phase=_PHASE, timeout_s=_left_s(deadline))[0]


def _left_s(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _pieces(prompts: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]
