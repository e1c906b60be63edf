"""A reward model's scores of sampled answers, one part of the reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_ray.batching.row_layout import RowLayout
from rlhf_ray.config.groups.reward import ModelRewardConfig, ScorerPart
from rlhf_ray.data.chat_fields import THOUGHT_BEGINS, Message, Tool
from rlhf_ray.data.examples.answer_encoding import encode_answers
from rlhf_ray.data.tokens.turn_ends import without_inner_turns
from rlhf_ray.models.context import context_of
from rlhf_ray.models.loading import ScalarHeadModel
from rlhf_ray.models.reward_normalization import RewardNormalization
from rlhf_ray.records import FailureKind, RolloutGroup
from rlhf_ray.records.supervised import LabelledTokens
from rlhf_ray.rewards.outcomes import ItemFailure, Outcome
from rlhf_ray.training.forward.scoring import Predict, score_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Any token id: the value at a token depends only on the tokens before it.
_PLACEHOLDER = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of a reward model's input.

    Attributes:
        context: most tokens of prompt and answer together; None: no limit in its configuration.
        num_embeddings: token ids must be below it.
        padding: padding token, at which the model was never trained to give a score; None: none.
    """

    context: int | None
    num_embeddings: int
    padding: int | None = None


def limits_of(model: ScalarHeadModel) -> Limits:
    """Read the limits from a model that is not sharded yet."""
    config = model.backbone.config
    embeddings: Any = model.backbone.get_input_embeddings()
    return Limits(
        context=context_of(config),
        num_embeddings=embeddings.weight.shape[0],
        padding=config.pad_token_id,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """This rank's share of the samples, if all ranks hold one sharded model together.

    Attributes:
        rank, num_ranks: of those that have different samples: ranks, or groups of ranks.
        gather: sums a tensor over them.
    """

    rank: int = 0
    num_ranks: int = 1
    gather: Callable[[Tensor], Tensor] = lambda values: values


class AnswerScores:
    """A `GroupScorer` with a loaded reward model.

    The score of an answer is the value at its last token, as in the training of a reward model.
    This token is the end of text that the policy sampled; a truncated answer has none. If the
    model's configuration uses the end of text as padding, transformers trained the model to give
    the score one token earlier, and it is read there.

    Args:
        settings: include mean and standard deviation if scores are normalised.
        predict: gives the model's values at the tokens before the targets of a micro-batch.
        tokenizer: tokenizes prompt and response again; None: use the sampled token ids.
        turn_tokens: with sampled ids, the tokens that begin and end turns, and what replaces them
            inside of an answer, which could end its turn and write the next ones.
    """

    def __init__(
        self,
        settings: ModelRewardConfig,
        *,
        predict: Predict,
        layout: RowLayout,
        limits: Limits,
        tokenizer: PreTrainedTokenizerBase | None,
        turn_tokens: Mapping[int, tuple[int, ...]] = MappingProxyType({}),
        share: Share | None = None,
    ) -> None:
        self._settings = settings
        self._predict = predict
        # The placeholder after an answer takes part in the plan, but never in a forward pass: an
        # answer that fills the budget exactly must not be refused because of it.
        self._layout = replace(layout, max_tokens=layout.max_tokens + 1)
        self._limits = limits
        self._tokenizer = tokenizer
        self._turn_tokens = turn_tokens
        self._share = share or Share()
        self._normalization = _normalization(settings)

    @property
    def part(self) -> ScorerPart:
        settings = self._settings
        return ScorerPart(group="reward.model", name=settings.name, weight=settings.weight)

    @property
    def max_tokens(self) -> int:
        """Longest prompt and answer together that the model reads."""
        budget, context = self._settings.max_sample_tokens, self._limits.context
        return budget if context is None else min(budget, context)

    def score(self, group: RolloutGroup) -> list[Outcome]:
        """See `GroupScorer.score`. Ranks that share a model call it together."""
        return self._scored(self._rows(group), group.finish_reasons)

    def score_texts(
        self,
        messages: Sequence[Message],
        answers: Sequence[str],
        finish_reasons: Sequence[str],
        *,
        tools: Sequence[Tool] = (),
    ) -> list[Outcome]:
        """Like `score`, for answers to a chat as text; needs the tokenizer.

        Args:
            finish_reasons: "stop" or "length" for each answer.
            tools: functions that the answers may call.
        """
        rows = self._text_rows(messages, answers, finish_reasons, tools=tools)
        return self._scored(rows, finish_reasons)

    def _scored(
        self, rows: Sequence[LabelledTokens | ItemFailure], finish_reasons: Sequence[str]
    ) -> list[Outcome]:
        # A failure must not hold up the other answers of its group: it keeps its place in the list,
        # and only the rest goes through the model.
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
        """Tokens of prompt and answer of every sample, for the reward model."""
        if self._tokenizer is None:
            lengths = group.lengths.tolist()
            pieces = zip(
                group.token_ids.split(lengths), group.loss_mask.split(lengths), strict=True
            )
            return [
                without_inner_turns(
                    LabelledTokens(token_ids=ids, loss_mask=mask), self._turn_tokens
                )
                for ids, mask in pieces
            ]
        prompt = group.prompt
        return self._text_rows(
            prompt.messages,
            group.responses,
            group.finish_reasons,
            tools=prompt.tools,
            opens_thought=prompt.text.rstrip().endswith(THOUGHT_BEGINS),
        )

    def _text_rows(
        self,
        messages: Sequence[Message],
        answers: Sequence[str],
        finish_reasons: Sequence[str],
        *,
        tools: Sequence[Tool],
        opens_thought: bool = False,
    ) -> list[LabelledTokens | ItemFailure]:
        assert self._tokenizer is not None, "texts need a tokenizer"
        finished = [reason != "length" for reason in finish_reasons]
        encoded = encode_answers(
            messages,
            answers,
            finished,
            self._tokenizer,
            tools=tools,
            opens_thought=opens_thought,
        )
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
        budget = self._settings.max_sample_tokens
        if num_tokens > budget:
            return _failure(
                f"prompt and response have {num_tokens} tokens, more than "
                f"reward.model.max_tokens_per_micro_batch="
                f"{self._settings.max_tokens_per_micro_batch}{self._layout.split.described}; "
                f"raise it"
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
        # Ranks that share a model have the same group, so all of them return here or none.
        if not rows:
            return values
        # Every second (third, ...) sample: a slice of a short group may be empty on the last ranks,
        # which still run the forward pass, because ZeRO-3 gathers weights from all.
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
    """Cut a row after its last token that is not padding; keep the first token if all are."""
    if padding is None:
        return row
    others = (row.token_ids != padding).nonzero()
    end = int(others[-1]) + 1 if others.numel() else 1
    return LabelledTokens(token_ids=row.token_ids[:end], loss_mask=row.loss_mask[:end])


def _values_at_the_end(
    predict: Predict, rows: Sequence[LabelledTokens], layout: RowLayout
) -> Tensor:
    """The value at the last token of every row [R] float64.

    A value is predicted at the token before a target, so every row gets a placeholder as its last
    target. The tokens of the answer are targets too, though their values are not used: they show
    the layout where the prompt ends, so that a prompt of several samples is computed once.
    """
    lengths = torch.tensor([row.token_ids.shape[0] + 1 for row in rows], dtype=torch.int64)
    placeholder = torch.tensor([_PLACEHOLDER])
    nothing = torch.zeros(0, dtype=torch.int64)
    # `nothing` first: `cat` needs a tensor on a rank without rows.
    pieces = (part for row in rows for part in (row.token_ids, placeholder))
    token_ids = torch.cat([nothing, *pieces])
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
