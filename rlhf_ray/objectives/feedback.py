"""Learning from feedback (KTO): mismatched pairs, the samples of every rank, the objective."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.algorithms.preferences.kto_loss import (
    kto_loss,
    log_ratio_share,
    mismatched_answers,
)
from rlhf_ray.algorithms.preferences.pair_statistics import correct_pairs
from rlhf_ray.algorithms.reduce import mean_share
from rlhf_ray.batching.layout import MicroBatch
from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.config.groups.fit import PreferenceConfig
from rlhf_ray.mapped_rows import MappedRows
from rlhf_ray.objectives.policy import Objective
from rlhf_ray.objectives.preference_batches import (
    AnswerSums,
    PreferenceGroup,
    spread_preference_groups,
    sum_over_answers,
)
from rlhf_ray.records.preferences import Feedback, FeedbackSamples, PreferenceSamples
from rlhf_ray.records.supervised import LabelledTokens

GOOD, BAD = 0, 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A judged answer, and its prompt with the answer to another prompt."""

    answer: PreferenceGroup
    mismatched: PreferenceGroup


def mismatched_pairs(feedback: Sequence[Feedback], *, max_tokens: int) -> Sequence[LabelledTokens]:
    """Pair every prompt with the answer to another prompt; see `mismatched_answers`.

    A pair longer than `max_tokens` is cut at its end; at least one token of the answer stays.
    Pairs are made when they are asked for. Memory has eight bytes for each.

    Raises:
        ValueError: all prompts are the same.
    """
    # Hashes of 64 bits: only neighbours, and each prompt and the first, are compared.
    prompts = array("Q", (_prompt_hash(row) for row in feedback))
    others = array("q", mismatched_answers(prompts))

    def pair(number: int) -> LabelledTokens:
        row, other = feedback[number], feedback[others[number]]
        joined = _joined(row.sample, _num_prompt(row), other.sample, _num_prompt(other))
        # Copies: a slice would send the storage of the whole sample to other processes.
        return LabelledTokens(
            token_ids=joined.token_ids[:max_tokens].clone(),
            loss_mask=joined.loss_mask[:max_tokens].clone(),
        )

    return MappedRows(range(len(feedback)), pair)


def prompt_of(feedback: Feedback) -> tuple[int, ...]:
    """The tokens before the answer."""
    return tuple(feedback.sample.token_ids[: _num_prompt(feedback)].tolist())


def _num_prompt(feedback: Feedback) -> int:
    """Number of tokens before the answer."""
    return int(feedback.sample.loss_mask.nonzero()[0])


def _prompt_hash(feedback: Feedback) -> int:
    tokens = feedback.sample.token_ids[: _num_prompt(feedback)].numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(tokens, digest_size=8).digest(), "big")


def _joined(
    one: LabelledTokens, num_prompt: int, other: LabelledTokens, num_other: int
) -> LabelledTokens:
    """The prompt of one and the answer of the other."""
    return LabelledTokens(
        token_ids=torch.cat([one.token_ids[:num_prompt], other.token_ids[num_other:]]),
        loss_mask=torch.cat([one.loss_mask[:num_prompt], other.loss_mask[num_other:]]),
    )


def spread_feedback(rows: Sequence[Judged], plan: RankPlan) -> list[FeedbackSamples]:
    """Spread the rows of one optimiser step over the ranks.

    Raises:
        ValueError: a sample alone is over the budget of a forward pass.
    """
    num_good = sum(row.answer.ranks == (GOOD,) for row in rows)
    judged = spread_preference_groups([row.answer for row in rows], plan)
    mismatched = spread_preference_groups([row.mismatched for row in rows], plan)
    return [
        FeedbackSamples(
            judged=own, mismatched=other, num_good=num_good, num_bad=len(rows) - num_good
        )
        for own, other in zip(judged, mismatched, strict=True)
    ]


def log_ratio_objective(
    logprobs: Tensor, samples: PreferenceSamples, batch: MicroBatch, *, name: str
) -> Objective:
    """The share of the mean log ratio of the mismatched answers: a metric without a gradient.

    Args:
        logprobs [M]: of the predicted tokens.
    """
    answers = sum_over_answers(logprobs.detach().double(), samples, batch)
    share = log_ratio_share(
        answers.sums,
        samples.reference_logprobs[answers.samples],
        _all(answers),
        samples.num_prompts,
    )
    value = torch.tensor(share, dtype=torch.float64, device=logprobs.device)
    return Objective(loss=value, sums={name: value}, maxima={})


def feedback_objective(
    logprobs: Tensor,
    samples: FeedbackSamples,
    on_device: PreferenceSamples,
    batch: MicroBatch,
    *,
    mean_log_ratio: float,
    preference: PreferenceConfig,
    phase: str,
) -> Objective:
    """The share of the mean loss over all answers of the step; see `kto_loss`.

    Args:
        logprobs [M] with gradient: of the predicted tokens.
        on_device: `samples.judged` on the device of the batch.
        mean_log_ratio: of the mismatched answers of all ranks, under the weights as they are.
        phase: first part of the metrics' names, "train" or "eval".
    """
    answers = sum_over_answers(logprobs.double(), on_device, batch)
    mask, is_good = _all(answers), on_device.ranks[answers.samples] == GOOD
    loss = kto_loss(
        answers.sums,
        on_device.reference_logprobs[answers.samples],
        is_good,
        mask,
        mean_log_ratio=mean_log_ratio,
        beta=preference.beta,
        desirable_weight=preference.desirable_weight,
        undesirable_weight=preference.undesirable_weight,
    )
    share = mean_share(loss.per_answer, mask, on_device.num_prompts)
    above = loss.rewards - preference.beta * loss.reference_point
    # Good answers belong above the reference point, bad ones below.
    is_right = correct_pairs(torch.where(is_good, above, -above), mask)
    sums = {
        f"{phase}/loss": share.detach(),
        f"{phase}/accuracy": mean_share(is_right, mask, on_device.num_prompts),
    }
    # Global counts: all ranks and micro-batches of a step have the same metrics. A step may be
    # without answers of one kind, and has no mean of theirs then.
    chosen, rejected = f"{phase}/chosen_reward", f"{phase}/rejected_reward"
    if samples.num_good:
        sums[chosen] = mean_share(loss.rewards, is_good, samples.num_good)
    if samples.num_bad:
        sums[rejected] = mean_share(loss.rewards, ~is_good, samples.num_bad)
    if samples.num_good and samples.num_bad:
        sums[f"{phase}/reward_margin"] = sums[chosen] - sums[rejected]
    return Objective(loss=share, sums=sums, maxima={})


def _all(answers: AnswerSums) -> Tensor:
    return torch.ones_like(answers.samples, dtype=torch.bool)
