"""The reward model's objective: the place of an answer's score, and the loss of the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_ray.algorithms.preferences.pair_statistics import (
    calibration_bins,
    expected_calibration_error,
)
from rlhf_ray.algorithms.preferences.ranked_pairs import pair_share, ranked_pairs
from rlhf_ray.algorithms.preferences.reward_model_loss import reward_model_loss
from rlhf_ray.batching.layout import MicroBatch
from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.batching.sequence_split import SequenceSplit
from rlhf_ray.objectives.policy import Objective
from rlhf_ray.objectives.preference_batches import (
    PreferenceGroup,
    spread_preference_groups,
    sum_over_answers,
)
from rlhf_ray.records.preferences import PreferenceSamples, Ranking
from rlhf_ray.records.supervised import LabelledTokens, num_scored_tokens

# Guo et al. 2017, arXiv:1706.04599, have 15 bins over [0, 1]; confidence is at least 1/2 here.
_NUM_BINS = 10
_BIN_FIELDS = ("pairs", "confidence", "outcome")
_BIN_PREFIX = "calibration/"
# Any token id: a value depends only on the tokens before it.
_MADE_UP = 0


def spread_rankings(
    rankings: Sequence[Ranking], plan: RankPlan, *, use_margins: bool
) -> list[PreferenceSamples]:
    """Spread the rankings of one optimiser step over the ranks; each stays in one forward pass.

    The score of an answer is the value at its last token, and a layout reads a prediction at the
    token before the predicted one. So every answer gets a made-up token after it, which is its
    only predicted token and is never part of a forward pass.

    Args:
        use_margins: False treats every margin as unknown.

    Raises:
        ValueError: a ranking alone is over the budget of a forward pass.
    """
    largest = max((len(ranking.answers) for ranking in rankings), default=1)
    for ranking in rankings:
        check_fits(
            ranking,
            largest,
            plan.max_tokens_per_micro_batch,
            ranks_per_sample=plan.sequence_parallel_size,
        )
    preference_groups = [
        PreferenceGroup(
            answers=tuple(_scored(answer) for answer in ranking.answers),
            ranks=tuple(range(len(ranking.answers))),
            margin=(ranking.margin or 0.0) if use_margins else 0.0,
            reference_logprobs=(0.0,) * len(ranking.answers),
        )
        for ranking in rankings
    ]
    # The made-up tokens are planned, but never computed.
    budget = plan.max_tokens_per_micro_batch + largest
    return spread_preference_groups(
        preference_groups, replace(plan, max_tokens_per_micro_batch=budget)
    )


def check_fits(ranking: Ranking, largest: int, budget: int, *, ranks_per_sample: int = 1) -> None:
    """Refuse a ranking that fits in no forward pass.

    Args:
        largest: answers of the largest ranking; all rankings are planned with this number.
        budget: tokens of a forward pass on one rank.
        ranks_per_sample: ranks that compute every answer together.

    Raises:
        ValueError: names the smallest budget that fits.
    """
    longest = max(num_scored_tokens(answer) for answer in ranking.answers)
    split = SequenceSplit(size=ranks_per_sample)
    needed = largest * split.held(longest)
    if needed > budget:
        raise ValueError(
            f"all answers to a prompt are scored in one forward pass: {largest} answers of "
            f"{longest} tokens{split.described}, but training.max_tokens_per_micro_batch is "
            f"{budget}; raise it to at least {needed}, or lower examples.max_tokens"
        )


def _scored(answer: LabelledTokens) -> LabelledTokens:
    """Prompt and answer with a made-up token after them, the only predicted token."""
    own = answer.token_ids[: num_scored_tokens(answer)]
    mask = torch.zeros(own.shape[0] + 1, dtype=torch.bool)
    mask[-1] = True
    return LabelledTokens(token_ids=torch.cat([own, own.new_tensor([_MADE_UP])]), loss_mask=mask)


class RankingScores(NamedTuple):
    """Scores of the answers of a micro-batch.

    Attributes:
        values [R]: scores, with the gradient of the forward pass.
        samples [R] int64: numbers of the answers among the step's samples on this rank.
        num_tokens: tokens of prompts and answers, without the made-up tokens.
    """

    values: Tensor
    samples: Tensor
    num_tokens: Tensor


def scores_of(values: Tensor, samples: PreferenceSamples, batch: MicroBatch) -> RankingScores:
    """Read the score of every answer.

    Args:
        values [M]: values of the predicted tokens, one per answer.
    """
    scores = sum_over_answers(values, samples, batch)
    lengths = samples.lengths[scores.samples]
    return RankingScores(
        values=scores.sums, samples=scores.samples, num_tokens=(lengths - scores.counts).sum()
    )


def ranking_objective(
    scores: RankingScores, samples: PreferenceSamples, *, centring_coefficient: float, name: str
) -> Objective:
    """The share of the mean over rankings of the loss of their pairs; see `reward_model_loss`.

    Args:
        name: group of the metrics: loss, accuracy and margin are means over rankings;
            `mean_calibration_error` makes one number of the bins, which count pairs.
    """
    of_answer = samples.prompts[scores.samples]
    lengths = torch.unique_consecutive(of_answer, return_counts=True)[1]
    present = torch.ones_like(of_answer, dtype=torch.bool)
    pairs = ranked_pairs(samples.ranks[scores.samples], lengths, present)
    mask = torch.ones_like(pairs.chosen, dtype=torch.bool)
    loss = reward_model_loss(
        scores.values[pairs.chosen],
        scores.values[pairs.rejected],
        samples.margins[scores.samples][pairs.chosen],
        mask,
        centering=centring_coefficient,
    )

    def share(values: Tensor) -> Tensor:
        return pair_share(values, pairs.weights, mask, samples.num_prompts)

    total = share(loss.per_pair)
    sums = {
        f"{name}/loss": total.detach(),
        f"{name}/accuracy": share(loss.correct),
        f"{name}/margin": share(loss.difference),
        f"{name}/tokens": scores.num_tokens,
    }
    bins = calibration_bins(loss.difference, mask, num_bins=_NUM_BINS)
    for row in range(_NUM_BINS):
        for column, field in enumerate(_BIN_FIELDS):
            sums[f"{_BIN_PREFIX}{row}/{field}"] = bins[row, column]
    return Objective(loss=total, sums=sums, maxima={})


def mean_calibration_error(metrics: dict[str, float]) -> tuple[dict[str, float], float]:
    """Split the summed metrics into those without the bins and the calibration error."""
    rows = [
        [metrics[f"{_BIN_PREFIX}{row}/{field}"] for field in _BIN_FIELDS]
        for row in range(_NUM_BINS)
    ]
    others = {key: value for key, value in metrics.items() if not key.startswith(_BIN_PREFIX)}
    return others, expected_calibration_error(torch.tensor(rows, dtype=torch.float64))
