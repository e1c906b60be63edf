"""From rankings of several answers to pairs, so that every ranking counts once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import (
    assert_integers,
    assert_lengths,
    assert_no_gradient,
    assert_token_tensors,
)
from rlhf_ray.algorithms.ragged import segment_ids
from rlhf_ray.algorithms.reduce import mean_share


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedPairs:
    """The P pairs of some rankings, by the places of their answers.

    Attributes:
        chosen [P] int64, rejected [P] int64: the better and the worse answer.
        weights [P] float64: 1 / number of pairs of the pair's ranking.
        num_rankings: those with a pair.
    """

    chosen: Tensor
    rejected: Tensor
    weights: Tensor
    num_rankings: int


def ranked_pairs(ranks: Tensor, lengths: Tensor, mask: Tensor) -> RankedPairs:
    """All pairs of answers to one prompt of which one is ranked above the other.

        weight of a pair = 1 / number of pairs of its ranking,   1 / (K choose 2) of K answers

    Ouyang et al. 2022, Training language models to follow instructions with human feedback
    (InstructGPT), arXiv:2203.02155, equation 1: pairs of one ranking are correlated, so they
    are one element of the batch and count as one.

    Conventions: two answers of equal rank are no pair, and the weights are those of the pairs
    that are left. A ranking without a pair (one answer, or all tied) is not counted. TRL and
    DeepSpeed-Chat know pairs only, so there a ranking of K counts (K choose 2) times.

    Args:
        ranks [S] int64: of every answer among those to its prompt; the smallest is the best.
        lengths [R] int64: number of answers of every ranking, summing to S.
        mask [S] bool: False on answers that are padding.
    """
    assert_token_tensors(mask)
    assert_integers("ranks", ranks, mask.shape)
    assert_lengths(lengths, mask.shape[0])
    rankings = segment_ids(lengths)
    # A square of all answers: a micro-batch has some hundreds of them.
    above = (rankings[:, None] == rankings) & (ranks[:, None] < ranks)
    chosen, rejected = (above & mask[:, None] & mask).nonzero(as_tuple=True)
    owners = rankings[chosen]
    counts = torch.bincount(owners, minlength=lengths.shape[0])
    return RankedPairs(
        chosen=chosen,
        rejected=rejected,
        weights=1.0 / counts[owners].double(),
        num_rankings=int((counts > 0).sum()),
    )


def pair_share(values: Tensor, weights: Tensor, mask: Tensor, global_count: int) -> Tensor:
    """This micro-batch's share of the mean over all rankings of the optimiser step.

        sum over the mask of weights * values / global_count

    Conventions: `global_count` counts the rankings of ALL ranks and micro-batches (of single
    pairs, each with the weight 1: the pairs), so that the plain SUM of the shares is the mean,
    as in `mean_share`. Without a pair it is 0 with a gradient path. TRL, OpenRLHF and
    DeepSpeed-Chat average the averages of micro-batches and ranks, which is the same for equal
    sizes only.

    Args:
        values [P]: a loss or a statistic of every pair; weights [P] floating point, constants;
            mask [P] bool.

    Returns:
        a scalar, in float64.
    """
    assert_token_tensors(mask, values=values, weights=weights)
    assert_no_gradient(weights=weights)
    # The weights are masked too: 0 * NaN in the backward pass would be NaN.
    weighted = values.double() * torch.where(mask, weights.double(), 0.0)
    return mean_share(weighted, mask, global_count)
