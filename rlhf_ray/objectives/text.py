"""Supervised training: samples of every rank, and the objective of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_ray.algorithms.reduce import mean_share
from rlhf_ray.batching.rank_plan import RankPlan, consecutive_rows, plan_rows
from rlhf_ray.objectives.policy import Objective
from rlhf_ray.records.supervised import LabelledTokens, SupervisedSamples


def spread_samples(samples: Sequence[LabelledTokens], plan: RankPlan) -> list[SupervisedSamples]:
    """Spread the samples of one optimiser step over the ranks.

    Raises:
        ValueError: a sample alone is over the budget of a forward pass.
    """
    lengths = torch.tensor([len(sample.token_ids) for sample in samples], dtype=torch.int64)
    token_ids, mask = _joined(samples)
    per_rank = plan_rows(token_ids, lengths, mask, range(len(samples)), plan)
    num_masked = [int(sample.loss_mask.sum()) for sample in samples]
    spread = []
    for micro_batches in per_rank:
        mine = [row for rows in micro_batches for row in rows]
        token_ids, mask = _joined([samples[row] for row in mine])
        spread.append(
            SupervisedSamples(
                token_ids=token_ids,
                lengths=lengths[torch.tensor(mine, dtype=torch.int64)],
                loss_mask=mask,
                micro_batches=consecutive_rows([len(rows) for rows in micro_batches]),
                num_loss_tokens=sum(num_masked),
                num_sequences=sum(number > 0 for number in num_masked),
            )
        )
    return spread


def text_objective(
    logprobs: Tensor, num_loss_tokens: int, *, name: str, coefficient: float = 1.0
) -> Objective:
    """The share of the mean negative log-likelihood, in nats per predicted token.

        loss = coefficient x (sum of -logprobs) / num_loss_tokens

    Args:
        logprobs [M] with gradient: log-probabilities of this micro-batch's predicted tokens.
        num_loss_tokens: GLOBAL count over micro-batches and ranks.
        name: name of the metric, which is without the coefficient.
    """
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    loss = mean_share(-logprobs, mask, num_loss_tokens)
    return Objective(loss=coefficient * loss, sums={name: loss.detach()}, maxima={})


def perplexity(loss: float) -> float:
    """exp(loss) of a mean negative log-likelihood in nats per token; infinity on overflow."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _joined(samples: Sequence[LabelledTokens]) -> tuple[Tensor, Tensor]:
    """Token ids [N] and masks [N], one sample after the other."""
    if not samples:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
    token_ids = torch.cat([sample.token_ids for sample in samples])
    return token_ids, torch.cat([sample.loss_mask for sample in samples])
