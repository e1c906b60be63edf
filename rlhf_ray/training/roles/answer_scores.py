"""A reward model's scores of sampled answers, as a part of the reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_ray.batching.row_layout import RowLayout
from rlhf_ray.config.groups.reward import ModelRewardConfig, ScorerPart
from rlhf_ray.data.examples.answer_encoding import encode_answers
from rlhf_ray.data.messages import Message
from rlhf_ray.models.context import context_of
from rlhf_ray.models.loading import ScalarHeadModel
from rlhf_ray.models.reward_normalization import RewardNormalization
from rlhf_ray.records import FailureKind, RolloutGroup
from rlhf_ray.records.supervised import LabelledTokens
from rlhf_ray.rewards.outcomes import ItemFailure, Outcome
from rlhf_ray.training.forward.scoring import Predict, score_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Whichever: a value is that of what precedes the token.
_MADE_UP = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a model can read.

    Attributes:
        context: tokens of prompt and answer together; None where its configuration has no limit.
        num_embeddings: token ids are below it.
        padding: the token at which it has never been asked for a score; None for none.
    """

    context: int | None
    num_embeddings: int
    padding: int | None = None


def limits_of(model: ScalarHeadModel) -> Limits:
    """Those of a model that is not sharded yet."""
    config = model.backbone.config
    embeddings: Any = model.backbone.get_input_embeddings()
    return Limits(
        context=context_of(config),
        num_embeddings=embeddings.weight.shape[0],
        padding=config.pad_token_id,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Which of the samples a rank computes, where all ranks hold one model together.

    Attributes:
        gather: sums a tensor over the ranks.
    """

    rank: int = 0
    num_ranks: int = 1
    gather: Callable[[Tensor], Tensor] = lambda values: values


class AnswerScores:
    """Scores groups with a model that is loaded: a `GroupScorer`.

    The score of an answer is the value at its last token, as a reward model is trained on it:
    prompt and answer with the end of text that the policy sampled, or without one where the answer
    was cut off. Where the model's configuration names that token as padding, transformers has
    trained it to give the score before it, and so it is read there.

    Args:
        settings: with mean and standard deviation, where scores are normalised.
        predict: values of the model, at the tokens before the targets of a micro-batch.
        tokenizer: render and tokenise prompt and response anew with it; None takes the token ids
            that were sampled.
    """

    def __init__(
        self,
        settings: ModelRewardConfig,
        *,
        predict: Predict,
        layout: RowLayout,
        limits: Limits,
        tokenizer: PreTrainedTokenizerBase | None,
        share: Share | None = None,
    ) -> None:
        self._settings = settings
        self._predict = predict
        # A made-up token behind an answer is planned, but never computed.
        self._layout = replace(layout, max_tokens=layout.max_tokens + 1)
        self._limits = limits
        self._tokenizer = tokenizer
        self._share = share or Share()
        self._normalization = _normalization(settings)

    @property
    def part(self) -> ScorerPart:
        settings = self._settings
        return ScorerPart(group="reward.model", name=settings.name, weight=settings.weight)

    def score(self, group: RolloutGroup) -> list[Outcome]:
        """See `GroupScorer.score`. Where ranks share the model, all of them call it together."""
        return self._scored(self._rows(group), group.finish_reasons)

    def score_texts(
        self, messages: Sequence[Message], answers: Sequence[str], finish_reasons: Sequence[str]
    ) -> list[Outcome]:
        """As `score`, of answers to a chat that nobody has tokenised; it needs the tokenizer.

        Args:
            finish_reasons: "stop" or "length", of each answer.
        """
        rows = self._text_rows(messages, answers, finish_reasons)
        return self._scored(rows, finish_reasons)

    def _scored(
        self, rows: Sequence[LabelledTokens | ItemFailure], finish_reasons: Sequence[str]
    ) -> list[Outcome]:
        outcomes: list[Outcome | LabelledTokens] = [self._checked(row) for row in rows]
        unfinished = self._settings.unfinished_score
        for sample, reason in enumerate(finish_reasons):
            if reason == "length" and unfinished is not None:
                outcomes[sample] = unfinished
        asked = [row for row in outcomes if isinstance(row, LabelledTokens)]
        values = iter(self._values(asked).tolist())
        return [
            self._outcome(next(values)) if isinstance(outcome, LabelledTokens) else outcome
            for outcome in outcomes
        ]

    def _rows(self, group: RolloutGroup) -> list[LabelledTokens | ItemFailure]:
        """Prompt and answer of every sample as the model reads them."""
        if self._tokenizer is None:
            lengths = group.lengths.tolist()
            pieces = zip(
                group.token_ids.split(lengths), group.loss_mask.split(lengths), strict=True
            )
            return [LabelledTokens(token_ids=ids, loss_mask=mask) for ids, mask in pieces]
        return self._text_rows(group.prompt.messages, group.responses, group.finish_reasons)

    def _text_rows(
        self, messages: Sequence[Message], answers: Sequence[str], finish_reasons: Sequence[str]
    ) -> list[LabelledTokens | ItemFailure]:
        assert self._tokenizer is not None, "texts are read with a tokenizer"
        finished = [reason != "length" for reason in finish_reasons]
        encoded = encode_answers(messages, answers, finished, self._tokenizer)
        return [row if isinstance(row, LabelledTokens) else _failure(str(row)) for row in encoded]

    def _checked(self, row: LabelledTokens | ItemFailure) -> LabelledTokens | ItemFailure:
        if isinstance(row, ItemFailure):
            return row
        num_tokens, context = row.token_ids.shape[0], self._limits.context
        if context is not None and num_tokens > context:
            return _failure(
                f"prompt and response have {num_tokens} tokens, and the reward model reads at most "
                f"{context}; lower data.max_prompt_tokens or generation.max_response_tokens"
            )
        budget = self._settings.max_tokens_per_micro_batch
        if num_tokens > budget:
            return _failure(
                f"prompt and response have {num_tokens} tokens, more than "
                f"reward.model.max_tokens_per_micro_batch={budget}; raise it"
            )
        largest = int(row.token_ids.max())
        if largest >= self._limits.num_embeddings:
            return _failure(
                f"token {largest} was sampled, and the reward model has "
                f"{self._limits.num_embeddings} embeddings"
            )
        return _without_padding(row, self._limits.padding)

    def _values(self, rows: Sequence[LabelledTokens]) -> Tensor:
        """The model's values [R] float64 at the last tokens of the rows."""
        values = torch.zeros(len(rows), dtype=torch.float64)
        if not rows:
            return values
        mine = slice(self._share.rank, None, self._share.num_ranks)
        values[mine] = _values_at_the_end(self._predict, rows[mine], self._layout)
        return self._share.gather(values)

    def _outcome(self, value: float) -> Outcome:
        if not math.isfinite(value):
            return ItemFailure(
                kind=FailureKind.REWARD_NOT_FINITE, message=f"the reward model's score is {value}"
            )
        score = self._normalization.normalized(value)
        bound = self._settings.clip
        return score if bound is None else max(-bound, min(score, bound))


def _without_padding(row: LabelledTokens, padding: int | None) -> LabelledTokens:
    """Up to the last token that does not pad; the first one, where all do."""
    if padding is None:
        return row
    others = (row.token_ids != padding).nonzero()
    end = int(others[-1]) + 1 if others.numel() else 1
    return LabelledTokens(token_ids=row.token_ids[:end], loss_mask=row.loss_mask[:end])


def _values_at_the_end(
    predict: Predict, rows: Sequence[LabelledTokens], layout: RowLayout
) -> Tensor:
    """The value at the last token of every row [R] float64.

    Every row gets a made-up token behind it, which is predicted and never part of a forward pass.
    Those of the answer are predicted too, though nobody asks for their values: so a layout knows
    where the prompt ends, and computes one that samples share only once.
    """
    lengths = torch.tensor([row.token_ids.shape[0] + 1 for row in rows], dtype=torch.int64)
    made_up = torch.tensor([_MADE_UP])
    nothing = torch.zeros(0, dtype=torch.int64)
    token_ids = torch.cat([nothing, *(part for row in rows for part in (row.token_ids, made_up))])
    predicted = torch.tensor([True])
    mask = torch.cat(
        [nothing.bool(), *(part for row in rows for part in (row.loss_mask, predicted))]
    )
    values = score_tokens(predict, token_ids, lengths, mask, None, layout=layout)
    return values[lengths.cumsum(0) - 1].double()


def _normalization(settings: ModelRewardConfig) -> RewardNormalization:
    if not settings.normalize:
        return RewardNormalization(mean=0.0, standard_deviation=1.0, num_answers=0)
    mean, deviation = settings.mean, settings.standard_deviation
    assert mean is not None, "reward.model.mean is found before a worker starts"
    assert deviation is not None, "so is reward.model.standard_deviation"
    return RewardNormalization(mean=mean, standard_deviation=deviation, num_answers=0)


def _failure(message: str) -> ItemFailure:
    return ItemFailure(kind=FailureKind.REWARD_ERROR, message=message)
