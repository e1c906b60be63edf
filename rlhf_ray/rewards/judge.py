"""A language model as a judge: its scores as a part of the reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from rlhf_ray.config.groups.reward import JudgeConfig, ScorerPart
from rlhf_ray.data.prompts.order import stable_seed
from rlhf_ray.generation.completions import (
    CompletionFailure,
    CompletionOutcome,
    CompletionRequest,
)
from rlhf_ray.records import FailureKind, RolloutGroup
from rlhf_ray.rewards.outcomes import ItemFailure, Outcome
from rlhf_ray.rewards.rubric import NoScore, Rubric, mean_score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class JudgeEngine(Protocol):
    """An engine that continues texts; see `generation.completions`."""

    async def complete(
        self, asked: Sequence[CompletionRequest], *, timeout_s: float
    ) -> Sequence[CompletionOutcome]: ...


class JudgeScorer:
    """An `AsyncGroupScorer` that asks engines for judgements.

    All questions about a group go together to the engine with the fewest open questions: they share
    the rubric and the prompt, which one engine computes once.

    Args:
        tokenizer: tokenizer of the judge.
        seed: base seed of sampled judgements, combined with prompt and sample.
    """

    def __init__(
        self,
        *,
        judge: JudgeConfig,
        tokenizer: PreTrainedTokenizerBase,
        engines: Sequence[JudgeEngine],
        seed: int,
    ) -> None:
        self._judge = judge
        self._rubric = Rubric(judge, tokenizer)
        self._engines = tuple(engines)
        self._pending = [0] * len(self._engines)
        self._seed = seed

    @property
    def part(self) -> ScorerPart:
        judge = self._judge
        return ScorerPart(group="reward.judge", name=judge.name, weight=judge.weight)

    async def score(self, group: RolloutGroup) -> Sequence[Outcome]:
        """See `AsyncGroupScorer.score`."""
        questions = [self._requests(group, position) for position in range(group.num_samples)]
        asked = [
            request for part in questions if not isinstance(part, ItemFailure) for request in part
        ]
        # The answers come in the order of the requests, `num_samples` for each question that could
        # be asked.
        said = iter(await self._ask(asked))
        return [
            part if isinstance(part, ItemFailure) else self._outcome([next(said) for _ in part])
            for part in questions
        ]

    async def close(self) -> None:
        """Nothing to do: engines are closed where they were started."""

    def _requests(
        self, group: RolloutGroup, position: int
    ) -> list[CompletionRequest] | ItemFailure:
        """The question about a sample, once for each judgement of it."""
        judge, index = self._judge, group.sample_indices[position]
        try:
            token_ids = self._rubric.question(group.prompt, group.responses[position])
        except NoScore as problem:
            return _failure(problem)
        return [
            CompletionRequest(
                token_ids=token_ids,
                max_tokens=judge.max_judgement_tokens,
                temperature=judge.temperature,
                seed=stable_seed(self._seed, f"{group.prompt.prompt_id}:{index}:{number}"),
            )
            for number in range(judge.num_samples)
        ]

    async def _ask(self, asked: Sequence[CompletionRequest]) -> Sequence[CompletionOutcome]:
        if not asked:
            return []
        chosen = self._pending.index(min(self._pending))
        self._pending[chosen] += len(asked)
        try:
            return await self._engines[chosen].complete(asked, timeout_s=self._judge.timeout_s)
        finally:
            self._pending[chosen] -= len(asked)

    def _outcome(self, said: Sequence[CompletionOutcome]) -> Outcome:
        failures = [one for one in said if isinstance(one, CompletionFailure)]
        texts = [one.text for one in said if not isinstance(one, CompletionFailure)]
        # Some judgements are enough; only without any does the sample fail.
        if not texts:
            return ItemFailure(kind=failures[0].kind, message=f"the judge: {failures[0].message}")
        try:
            return mean_score(self._judge, texts)
        except NoScore as problem:
            return _failure(problem)


def _failure(problem: NoScore) -> ItemFailure:
    return ItemFailure(kind=FailureKind.REWARD_ERROR, message=str(problem))
