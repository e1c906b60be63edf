"""The loss of answers judged good or bad, without pairs (KTO)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_flags, assert_no_gradient, assert_token_tensors
from rlhf_ray.algorithms.reduce import mean_share


@dataclass(frozen=True, kw_only=True, slots=True)
class KtoLoss:
    """Loss and rewards of every answer, in float32 or wider; reduce each with `mean_share`.

    Attributes:
        per_answer [S]: the loss, with gradient; 0 off the mask.
        rewards [S]: beta times the log ratio; detached, 0 off the mask.
        reference_point: z0 in nats, never negative.
    """

    per_answer: Tensor
    rewards: Tensor
    reference_point: float


def mismatched_answers(prompts: Sequence[Hashable]) -> list[int]:
    """Choose the row whose answer follows each prompt in the KL estimate.

    Row i gets the answer of the nearest row before it that has another prompt; the last row is
    before the first. Without equal prompts that is row i - 1, the shift by one of TRL.

    Args:
        prompts [S]: equal for rows that answer the same prompt.

    Raises:
        ValueError: all prompts are the same, so no answer is a mismatch.
    """
    last = next((row for row in reversed(range(len(prompts))) if prompts[row] != prompts[0]), None)
    if last is None:
        raise ValueError("all prompts are the same")
    rows = []
    nearest = last
    for row, prompt in enumerate(prompts):
        # A run of rows with one prompt shares the row before the run.
        if row and prompts[row - 1] != prompt:
            nearest = row - 1
        rows.append(nearest)
    return rows


def log_ratio_share(
    mismatched_logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor, global_count: int
) -> float:
    """This micro-batch's share of the mean log ratio of all mismatched answers.

        sum over the mask of log(policy / reference)(y' | x) / global_count

    Conventions: as in `mean_share` the plain SUM of the shares over ranks and micro-batches is
    the mean. It is clamped at 0 by `kto_loss`, not here: a sum of clamped shares is not the
    clamped mean. TRL 1.16 and OpenRLHF 0.9.6 take the mean of the ranks' means over one
    micro-batch.

    Args:
        mismatched_logprobs [S], reference_logprobs [S]: summed over the tokens of the
            mismatched answer; a gradient is dropped. mask [S] bool.
        global_count: mismatched answers of ALL ranks and micro-batches.

    Returns:
        in nats, accumulated in float64.
    """
    assert_token_tensors(
        mask, mismatched_logprobs=mismatched_logprobs, reference_logprobs=reference_logprobs
    )
    log_ratio = mismatched_logprobs.detach().double() - reference_logprobs.detach().double()
    return float(mean_share(log_ratio, mask, global_count))


def kto_loss(
    logprobs: Tensor,
    reference_logprobs: Tensor,
    desirable: Tensor,
    mask: Tensor,
    *,
    mean_log_ratio: float,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> KtoLoss:
    """Loss per answer, by which side of a reference point its log ratio is on.

        z0   = max(0, mean log ratio of mismatched answers)
        loss = desirable_weight * (1 - sigmoid(beta * (log ratio - z0)))      of a good answer
        loss = undesirable_weight * (1 - sigmoid(beta * (z0 - log ratio)))    of a bad one

    Ethayarajh et al. 2024, KTO: Model Alignment as Prospect Theoretic Optimization,
    arXiv:2402.01306, section 4: z0 estimates the KL divergence, is not differentiated, and is
    one number for the whole batch.

    Conventions: the weights are not normalised: the loss is the sum over all answers of the
    optimiser step divided by their number. TRL warns where the numbers differ and
    desirable_weight * number of good answers is not 1 to 4/3 times undesirable_weight * number
    of bad ones; here the caller chooses.

    Args:
        logprobs [S]: summed over each answer's tokens, with gradient; reference_logprobs [S]:
            constants.
        desirable [S] bool: good; else bad. mask [S] bool: False on padding.
        mean_log_ratio: GLOBAL mean, the sum of `log_ratio_share` over ranks and micro-batches.
        beta: above 0.
    """
    assert_token_tensors(mask, logprobs=logprobs, reference_logprobs=reference_logprobs)
    assert_no_gradient(reference_logprobs=reference_logprobs)
    assert_flags("desirable", desirable, mask.shape)
    assert beta > 0, f"beta is {beta}"
    # Not max(), which takes 0 of 0 and NaN.
    reference_point = 0.0 if mean_log_ratio < 0 else mean_log_ratio
    wide = torch.promote_types(logprobs.dtype, torch.float32)
    # Masked before the loss: 0 * NaN in the backward pass would be NaN.
    log_ratio = torch.where(mask, logprobs.to(wide) - reference_logprobs.to(wide), 0.0)
    score = beta * (log_ratio - reference_point)
    # 1 - sigmoid(x) is sigmoid(-x), which does not cancel for large x.
    per_answer = torch.where(
        desirable,
        desirable_weight * torch.sigmoid(-score),
        undesirable_weight * torch.sigmoid(score),
    )
    return KtoLoss(
        per_answer=torch.where(mask, per_answer, 0.0),
        rewards=beta * log_ratio.detach(),
        reference_point=reference_point,
    )
