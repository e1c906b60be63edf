"""The records of learning from preferences: answers in an order, and answers good or bad."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from torch import Tensor

from rlhf_ray.records.supervised import LabelledTokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """Answers to one prompt, best first.

    Attributes:
        answers: two or more, no two with the same tokens; each is prompt and answer together,
            with the loss mask on the answer's tokens.
        margin: by how much the best one is better than the worst, at least 0, where that is
            known.
    """

    answers: tuple[LabelledTokens, ...]
    margin: float | None

    def __post_init__(self) -> None:
        if len(self.answers) < 2:
            raise ValueError(f"a ranking of {len(self.answers)} answers has no better one")
        for answer in self.answers:
            _check_has_answer(answer)
        for one, other in itertools.combinations(self.answers, 2):
            if one.token_ids.tolist() == other.token_ids.tolist():
                raise ValueError("two answers of a ranking have the same tokens")
        if self.margin is not None and not (math.isfinite(self.margin) and self.margin >= 0):
            raise ValueError(f"margin={self.margin}: must be a finite number of at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """One answer, and what somebody thought of it.

    Attributes:
        sample: prompt and answer together, with the loss mask on the answer's tokens.
        is_good: the answer is one to give.
    """

    sample: LabelledTokens
    is_good: bool

    def __post_init__(self) -> None:
        _check_has_answer(self.sample)


def _check_has_answer(sample: LabelledTokens) -> None:
    if not bool(sample.loss_mask.any()):
        raise ValueError("an answer has no token on its loss mask")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceSamples:
    """What one optimiser step learns from comparisons on one rank.

    Attributes:
        token_ids [N] int64, lengths [S] int64, loss_mask [N] bool, kept_token_ids [N, 0] int32,
            micro_batches: as in `supervised.SupervisedSamples`. All answers to a prompt are in one
            micro-batch, side by side.
        prompts [S] int64: the prompt that a sample answers, numbered over all ranks of this step.
        ranks [S] int64: of a sample among the answers to its prompt; 0 is the best.
        margins [S] float64: that of its prompt, 0.0 where none is known.
        reference_logprobs [S] float64: of all tokens of the answer together, under the reference;
            0.0 where nothing is compared with it.
        num_prompts: GLOBAL count over all ranks of this step.
    """

    token_ids: Tensor
    lengths: Tensor
    loss_mask: Tensor
    kept_token_ids: Tensor
    micro_batches: tuple[tuple[int, ...], ...]
    prompts: Tensor
    ranks: Tensor
    margins: Tensor
    reference_logprobs: Tensor
    num_prompts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedbackSamples:
    """What one optimiser step learns from feedback on one rank.

    Attributes:
        judged: the answers, each a prompt of its own; rank 0 is good, rank 1 bad.
        mismatched: for each of them, over all ranks, its prompt with the answer to another one.
        num_good, num_bad: GLOBAL counts over all ranks of this step.
    """

    judged: PreferenceSamples
    mismatched: PreferenceSamples
    num_good: int
    num_bad: int
