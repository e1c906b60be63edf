"""Batches of preference training: samples of every rank, and sums over each answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_ray.batching.layout import MicroBatch
from rlhf_ray.batching.micro_batches import plan_micro_batches
from rlhf_ray.batching.rank_plan import RankPlan, consecutive_rows
from rlhf_ray.batching.sequence_split import SequenceSplit
from rlhf_ray.records.preferences import PreferenceSamples
from rlhf_ray.records.supervised import LabelledTokens


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceGroup:
    """Answers to one prompt that a loss compares.

    Attributes:
        answers [K]: one or more, each with a token on its loss mask.
        ranks [K]: 0 is the best.
        margin: 0.0 if unknown.
        reference_logprobs [K]: log-probability of each whole answer under the reference; 0.0 if
            the loss has no reference.
    """

    answers: tuple[LabelledTokens, ...]
    ranks: tuple[int, ...]
    margin: float
    reference_logprobs: tuple[float, ...]

    def __post_init__(self) -> None:
        counts = {len(self.answers), len(self.ranks), len(self.reference_logprobs)}
        assert counts == {len(self.answers)}, f"a preference group has {sorted(counts)} entries"
        assert self.answers, "a preference group without an answer"


def spread_preference_groups(
    preference_groups: Sequence[PreferenceGroup], plan: RankPlan
) -> list[PreferenceSamples]:
    """Spread the groups of one optimiser step over the ranks; a group stays in one forward pass.

    Raises:
        ValueError: a group alone is over the budget of a forward pass.
    """
    per_rank = _plan(preference_groups, plan)
    spread = []
    for micro_batches in per_rank:
        mine = [number for numbers in micro_batches for number in numbers]
        answers = [answer for number in mine for answer in preference_groups[number].answers]
        counts = [
            sum(len(preference_groups[n].answers) for n in numbers) for numbers in micro_batches
        ]
        sizes = torch.tensor(
            [len(preference_groups[number].answers) for number in mine], dtype=torch.int64
        )
        token_ids = [answer.token_ids for answer in answers]
        margins = torch.tensor(
            [preference_groups[number].margin for number in mine], dtype=torch.float64
        )
        spread.append(
            PreferenceSamples(
                token_ids=_joined(token_ids, torch.int64),
                lengths=torch.tensor([len(ids) for ids in token_ids], dtype=torch.int64),
                loss_mask=_joined([answer.loss_mask for answer in answers], torch.bool),
                micro_batches=consecutive_rows(counts),
                prompts=torch.repeat_interleave(torch.tensor(mine, dtype=torch.int64), sizes),
                ranks=_numbers([preference_groups[n].ranks for n in mine], torch.int64),
                margins=torch.repeat_interleave(margins, sizes),
                reference_logprobs=_numbers(
                    [preference_groups[n].reference_logprobs for n in mine], torch.float64
                ),
                num_prompts=len(preference_groups),
            )
        )
    return spread


def _plan(preference_groups: Sequence[PreferenceGroup], plan: RankPlan) -> list[list[list[int]]]:
    """Plan per rank and micro-batch the numbers of its groups.

    A group counts as rows of its longest answer, as many as the largest group has. No layout
    makes a larger forward pass of it.
    """
    longest = [
        max(len(answer.token_ids) for answer in preference_group.answers)
        for preference_group in preference_groups
    ]
    largest = max(
        (len(preference_group.answers) for preference_group in preference_groups), default=1
    )
    rows = plan.max_tokens_per_micro_batch // largest
    split = SequenceSplit(size=plan.sequence_parallel_size)
    held = split.held(max(longest, default=0))
    if held > rows:
        raise ValueError(
            f"{largest} answers of {max(longest)} tokens are one forward pass{split.described}, "
            f"but max_tokens_per_micro_batch is {plan.max_tokens_per_micro_batch}: raise it to at "
            f"least {largest * held}, or shorten the samples"
        )
    return plan_micro_batches(longest, plan.num_ranks, rows, ranks_per_sample=split.size)


class AnswerSums(NamedTuple):
    """Sums over the predicted tokens of each of the R answers of a micro-batch.

    Attributes:
        sums [R]: with the gradient of the summed values.
        counts [R] int64: predicted tokens of each answer.
        samples [R] int64: number of each answer among the S samples, in order.
    """

    sums: Tensor
    counts: Tensor
    samples: Tensor


def sum_over_answers(values: Tensor, samples: PreferenceSamples, batch: MicroBatch) -> AnswerSums:
    """Sum values over the tokens of every answer in a micro-batch.

    Args:
        values [M]: of `batch.num_targets` predicted tokens.
        samples: on the device of the batch.
    """
    of_token = torch.repeat_interleave(samples.lengths)[batch.token_index]
    present, place, counts = torch.unique_consecutive(
        of_token, return_inverse=True, return_counts=True
    )
    zeros = torch.zeros(present.shape[0], dtype=values.dtype, device=values.device)
    return AnswerSums(sums=zeros.index_add(0, place, values), counts=counts, samples=present)


def _joined(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat(list(parts)) if parts else torch.zeros(0, dtype=dtype)


def _numbers(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
    return torch.tensor([number for row in rows for number in row], dtype=dtype)
