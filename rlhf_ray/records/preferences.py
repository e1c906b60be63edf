"""Records of preference training: ranked answers, and answers judged good or bad."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from torch import Tensor

from rlhf_ray.records.supervised import LabelledTokens
from rlhf_ray.records.travel import TravellingRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """Answers to one prompt, best first.

    Attributes:
        answers: two or more, no two with the same tokens; each is prompt and answer together,
            with the loss mask on the answer's tokens.
        margin: how much better the best answer is than the worst, at least 0; None if unknown.
    """

    answers: tuple[LabelledTokens, ...]
    margin: float | None

    def __post_init__(self) -> None:
        if len(self.answers) < 2:
            raise ValueError(f"a ranking needs at least 2 answers, got {len(self.answers)}")
        for answer in self.answers:
            _check_has_answer(answer)
        for one, other in itertools.combinations(self.answers, 2):
            if one.token_ids.tolist() == other.token_ids.tolist():
                raise ValueError("two answers of a ranking have the same tokens")
        if self.margin is not None and not (math.isfinite(self.margin) and self.margin >= 0):
            raise ValueError(f"margin={self.margin}: must be a finite number of at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """One answer with a judgement.

    Attributes:
        sample: prompt and answer together, with the loss mask on the answer's tokens.
        is_good: the answer is desirable.
    """

    sample: LabelledTokens
    is_good: bool

    def __post_init__(self) -> None:
        _check_has_answer(self.sample)


def _check_has_answer(sample: LabelledTokens) -> None:
    if not bool(sample.loss_mask.any()):
        raise ValueError("an answer has no token on its loss mask")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceSamples(TravellingRecord):
    """Ranked answers of one optimiser step on one rank.

    Attributes:
        token_ids [N] int64, lengths [S] int64, loss_mask [N] bool, micro_batches: as in
            `SupervisedSamples`. All answers to a prompt are in one micro-batch, side by side.
        prompts [S] int64: number of a sample's prompt, over all ranks of this step.
        ranks [S] int64: rank of a sample among the answers to its prompt; 0 is the best.
        margins [S] float64: margin of the sample's prompt, 0.0 if unknown.
        reference_logprobs [S] float64: log-probability of the whole answer under the reference;
            0.0 if the loss has no reference.
        num_prompts: GLOBAL count over all ranks of this step.
    """

    token_ids: Tensor
    lengths: Tensor
    loss_mask: Tensor
    micro_batches: tuple[tuple[int, ...], ...]
    prompts: Tensor
    ranks: Tensor
    margins: Tensor
    reference_logprobs: Tensor
    num_prompts: int

    @property
    def support_token_ids(self) -> None:
        """No support: answers of a data set were not sampled here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedbackSamples:
    """Judged answers of one optimiser step on one rank.

    Attributes:
        judged: the answers, each with its own prompt number; rank 0 is good, rank 1 bad.
        mismatched: the same prompts, each with the answer to another prompt.
        num_good, num_bad: GLOBAL counts over all ranks of this step.
    """

    judged: PreferenceSamples
    mismatched: PreferenceSamples
    num_good: int
    num_bad: int
