"""Rewards of a sample and of its tokens: the outcome, clipped, less the KL penalty."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_floating, assert_lengths, assert_token_tensors
from rlhf_ray.algorithms.ragged import (
    count_by_segment,
    last_masked_tokens,
    segment_ids,
    sum_by_segment,
)


def clip_rewards(outcomes: Tensor, limit: float | None) -> Tensor:
    """Outcomes within [-limit, limit], before any baseline; None leaves them: [S] -> [S]."""
    bound = math.inf if limit is None else limit
    return outcomes.clamp(-bound, bound)


def sample_rewards(
    outcomes: Tensor,
    kl: Tensor,
    lengths: Tensor,
    mask: Tensor,
    *,
    kl_coefficient: float,
    reward_clip: float | None,
) -> Tensor:
    """One reward per sample, for baselines that compare samples.

        R = clip(outcome) - kl_coefficient * sum_t kl_t

    The reward that the objective of Ziegler et al. 2019, arXiv:1909.08593, equation 2, gives
    a whole response, as Ahmadian et al. 2024, Back to Basics (RLOO), arXiv:2402.14740, use it.

    Args:
        outcomes [S], kl [N] per token, lengths [S] summing to N, mask [N] bool.

    Returns:
        [S] float64. A sample without a sampled token keeps its clipped outcome.
    """
    _check(outcomes, kl, lengths, mask)
    penalty = kl_coefficient * sum_by_segment(kl, lengths, mask)
    return clip_rewards(outcomes.double(), reward_clip) - penalty


def token_rewards(
    outcomes: Tensor,
    kl: Tensor,
    lengths: Tensor,
    mask: Tensor,
    *,
    kl_coefficient: float,
    reward_clip: float | None,
) -> Tensor:
    """One reward per sampled token.

        r_t = [t is the last sampled token] * clip(outcome) - kl_coefficient * kl_t

    Ziegler et al. 2019, arXiv:1909.08593, equation 2, per token as Stiennon et al. 2020,
    arXiv:2009.01325, and Ouyang et al. 2022, arXiv:2203.02155, apply it.

    Conventions: the outcome sits on the last SAMPLED token, wherever the sample ends; a sample
    without one has nowhere to put it and gets 0. The outcome is clipped, the penalty is not.

    Args:
        outcomes [S], kl [N] per token, lengths [S] summing to N, mask [N] bool.

    Returns:
        [N] float64, 0 off the mask.
    """
    _check(outcomes, kl, lengths, mask)
    outcome = clip_rewards(outcomes.double(), reward_clip)[segment_ids(lengths)]
    at_end = torch.where(last_masked_tokens(lengths, mask), outcome, 0.0)
    return at_end - kl_coefficient * torch.where(mask, kl.double(), 0.0)


def step_token_rewards(
    step_rewards: Tensor,
    step_ends: Tensor,
    kl: Tensor,
    mask: Tensor,
    *,
    kl_coefficient: float,
) -> Tensor:
    """One reward per sampled token, where every step of an answer has one.

        r_t = [a step ends with t] * reward of that step - kl_coefficient * kl_t

    Uesato et al. 2022, Solving math word problems with process- and outcome-based feedback,
    arXiv:2211.14275: rewards of steps instead of one for the outcome.

    Conventions: a step that ends off the mask has nowhere to put its reward, which is left out.

    Args:
        step_rewards [N]: read at `step_ends` only. step_ends [N] bool, kl [N], mask [N] bool.

    Returns:
        [N] float64, 0 off the mask.
    """
    assert_token_tensors(mask, step_rewards=step_rewards, kl=kl)
    assert_token_tensors(step_ends)
    at_ends = torch.where(step_ends & mask, step_rewards.double(), 0.0)
    return at_ends - kl_coefficient * torch.where(mask, kl.double(), 0.0)


def discount_by_position(kl: Tensor, lengths: Tensor, mask: Tensor, *, discount: float) -> Tensor:
    """The KL penalty of every sampled token, weighed by its place in the answer.

        kl_t * discount^t,   t = 0 for the first sampled token

    A discount below 1 holds the beginning of an answer closer to the reference than its end;
    1 changes nothing. Tokens off the mask do not count as places.

    Args:
        kl [N] per token, lengths [S] int64 summing to N, mask [N] bool.
        discount: in (0, 1].

    Returns:
        [N] float64, 0 off the mask.
    """
    assert_token_tensors(mask, kl=kl)
    counts = count_by_segment(mask, lengths)
    first = (counts.cumsum(0) - counts)[segment_ids(lengths)[mask]]
    place = torch.arange(first.shape[0], device=mask.device) - first
    discounted = torch.zeros_like(kl, dtype=torch.float64)
    discounted[mask] = kl[mask].double() * discount ** place.double()
    return discounted


def _check(outcomes: Tensor, kl: Tensor, lengths: Tensor, mask: Tensor) -> None:
    assert_token_tensors(mask, kl=kl)
    assert_lengths(lengths, mask.shape[0])
    assert_floating("outcomes", outcomes, lengths.shape)
