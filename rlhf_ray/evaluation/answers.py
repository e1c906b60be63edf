"""Measures of answers to held-out prompts: scalars for the statistics, optionally the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rlhf_ray.algorithms.kl import token_kl
from rlhf_ray.evaluation.statistics import distinct_share, repeated_share
from rlhf_ray.records import RolloutGroup, TokenValues

# Values of n for distinct-n.
DISTINCT_SIZES = (1, 2)
GREEDY, SAMPLED = "greedy", "sampled"
# Ways of decoding, in the order in which they are shown.
MODES = (GREEDY, SAMPLED)


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureSettings:
    """Settings of the measurement of an answer.

    Attributes:
        greedy_from: answers from this sample index on are greedy.
        kl_estimator: k1 or k3; none for no KL.
        ngram: length of the n-grams whose repetition is measured.
        with_text: keep the texts of prompts and answers.
    """

    greedy_from: int
    kl_estimator: str
    ngram: int
    with_text: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One scored answer.

    Attributes:
        text: empty if texts are not kept.
        num_tokens: number of sampled tokens, including the end of text.
        is_cut: the length limit ended the answer.
        parts: parts of the reward, unweighted.
        repeated: share of repeated n-grams; None if the answer is too short for an n-gram.
        kl: sum of the estimator over the answer's tokens, in nats; None if it was not measured.
    """

    sample_index: int
    text: str
    num_tokens: int
    is_cut: bool
    reward: float
    parts: dict[str, float]
    repeated: float | None
    kl: float | None

    def score(self, by: str) -> float:
        """The reward, or the part of it with this name."""
        return self.reward if by == "reward" else self.parts[by]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptAnswers:
    """All answers of one model to one prompt.

    Attributes:
        source: name of the task.
        answers: answers of each mode, in the order of sample indices.
        distinct: for each mode, distinct-n of its answers for every n of `DISTINCT_SIZES`; None if
            they are too short.
    """

    prompt_id: str
    source: str
    prompt: str
    reference_answer: str | None
    answers: dict[str, tuple[Answer, ...]]
    distinct: dict[str, tuple[float | None, ...]]


def measure_answers(
    groups: Sequence[RolloutGroup],
    reference: Sequence[TokenValues],
    settings: MeasureSettings,
) -> list[PromptAnswers]:
    """Measure the answers of all groups.

    Args:
        groups: scored groups.
        reference: log-probabilities of the sampled tokens under the reference, in any order; empty
            without a reference.
    """
    by_prompt = {values.prompt_id: values.values for values in reference}
    return [measure(group, by_prompt.get(group.prompt.prompt_id), settings) for group in groups]


def measure(
    group: RolloutGroup, reference_logprobs: Tensor | None, settings: MeasureSettings
) -> PromptAnswers:
    """Measure the answers of one scored group.

    The KL is measured on sampled answers only: a greedy answer is not a sample of the policy.

    Args:
        reference_logprobs [N]: log-probabilities of the sampled tokens under the reference; None
            without a reference.
    """
    assert group.is_scored, f"prompt {group.prompt.prompt_id} has no rewards"
    tokens = _sampled_tokens(group)
    kls = _kl_sums(group, reference_logprobs, settings.kl_estimator)
    found: dict[str, list[Answer]] = {}
    by_mode: dict[str, list[list[int]]] = {}
    for position, index in enumerate(group.sample_indices):
        mode = GREEDY if index >= settings.greedy_from else SAMPLED
        answer = Answer(
            sample_index=index,
            text=group.responses[position] if settings.with_text else "",
            num_tokens=len(tokens[position]),
            is_cut=group.finish_reasons[position] == "length",
            reward=float(group.rewards[position]),
            parts={name: float(part[position]) for name, part in group.reward_parts.items()},
            repeated=repeated_share(tokens[position], settings.ngram),
            kl=kls[position] if kls and mode == SAMPLED else None,
        )
        found.setdefault(mode, []).append(answer)
        by_mode.setdefault(mode, []).append(tokens[position])
    prompt = group.prompt
    return PromptAnswers(
        prompt_id=prompt.prompt_id,
        source=prompt.source,
        prompt=prompt.text if settings.with_text else "",
        reference_answer=prompt.answer if settings.with_text else None,
        answers={mode: tuple(answers) for mode, answers in found.items()},
        distinct={
            mode: tuple(distinct_share(texts, n) for n in DISTINCT_SIZES)
            for mode, texts in by_mode.items()
        },
    )


def _sampled_tokens(group: RolloutGroup) -> list[list[int]]:
    lengths = group.lengths.tolist()
    pieces = zip(group.token_ids.split(lengths), group.loss_mask.split(lengths), strict=True)
    return [ids[mask].tolist() for ids, mask in pieces]


def _kl_sums(group: RolloutGroup, reference_logprobs: Tensor | None, estimator: str) -> list[float]:
    """KL of every sample; empty if no KL is measured."""
    if reference_logprobs is None or estimator == "none":
        return []
    per_token = token_kl(
        group.generator_logprobs, reference_logprobs, group.loss_mask, estimator=estimator
    )
    return [float(part.double().sum()) for part in per_token.split(group.lengths.tolist())]
