"""Families of answers: never split, counted over all ranks, summed answer by answer."""

from __future__ import annotations

import pytest
import torch

from rlhf_ray.batching.layout import lay_out
from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.objectives.preference_batches import (
    PreferenceGroup,
    spread_preference_groups,
    sum_over_answers,
)
from rlhf_ray.records.preferences import PreferenceSamples
from rlhf_ray.records.supervised import LabelledTokens


def answer(first: int, length: int) -> LabelledTokens:
    """Tokens first, first + 1, ...; all but the first are predicted."""
    mask = torch.ones(length, dtype=torch.bool)
    mask[0] = False
    return LabelledTokens(token_ids=torch.arange(first, first + length), loss_mask=mask)


def preference_group(number: int, *lengths: int, margin: float = 0.0) -> PreferenceGroup:
    return PreferenceGroup(
        answers=tuple(answer(100 * number + 20 * k, n) for k, n in enumerate(lengths)),
        ranks=tuple(range(len(lengths))),
        margin=margin,
        reference_logprobs=tuple(-float(number * 10 + k) for k in range(len(lengths))),
    )


FAMILIES = [
    preference_group(1, 5, 3),
    preference_group(2, 4, 4, margin=2.5),
    preference_group(3, 9, 2),
    preference_group(4, 3, 3, 6),
]


def plan(num_ranks: int, budget: int = 1000) -> RankPlan:
    return RankPlan(num_ranks=num_ranks, max_tokens_per_micro_batch=budget)


def micro_batches_of(samples: PreferenceSamples) -> list[set[int]]:
    return [{int(samples.prompts[row]) for row in rows} for rows in samples.micro_batches]


@pytest.mark.parametrize(("num_ranks", "budget"), [(1, 27), (1, 1000), (2, 27), (3, 40)])
def test_a_family_is_in_one_micro_batch_of_one_rank(num_ranks: int, budget: int) -> None:
    spread = spread_preference_groups(FAMILIES, plan(num_ranks, budget))
    places = [found for samples in spread for found in micro_batches_of(samples)]
    assert sorted(number for found in places for number in found) == [0, 1, 2, 3]
    for samples in spread:
        assert samples.num_prompts == 4
        lengths = samples.lengths.tolist()
        for rows in samples.micro_batches:
            width = max((lengths[row] for row in rows), default=0)
            assert len(rows) * width <= budget
    assert len({len(samples.micro_batches) for samples in spread}) == 1


def test_numbers_stay_with_their_answers() -> None:
    for samples in spread_preference_groups(FAMILIES, plan(2)):
        starts = samples.lengths.cumsum(0) - samples.lengths
        for row, start in enumerate(starts.tolist()):
            whole = FAMILIES[int(samples.prompts[row])]
            rank = int(samples.ranks[row])
            mine = whole.answers[rank]
            tokens = samples.token_ids[start : start + int(samples.lengths[row])]
            assert tokens.tolist() == mine.token_ids.tolist()
            assert float(samples.margins[row]) == whole.margin
            assert float(samples.reference_logprobs[row]) == whole.reference_logprobs[rank]


def test_a_family_over_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3 answers of 9 tokens.*at least 27"):
        spread_preference_groups(FAMILIES, plan(1, 26))


def test_ranks_without_a_family_take_part() -> None:
    first, second = spread_preference_groups(FAMILIES[:1], plan(2))
    assert (first.lengths.numel(), second.lengths.numel()) == (2, 0)
    assert second.micro_batches == ((),)
    assert second.num_prompts == 1


def test_sums_over_answers_have_their_gradient() -> None:
    (samples,) = spread_preference_groups(FAMILIES[:2], plan(1))
    for rows in samples.micro_batches:
        batch = lay_out(
            samples.token_ids, samples.lengths, samples.loss_mask, samples.support_token_ids, rows
        )
        values = batch.targets.double().requires_grad_(True)
        found = sum_over_answers(values, samples, batch)
        assert found.samples.tolist() == list(rows)
        starts = (samples.lengths.cumsum(0) - samples.lengths).tolist()
        for place, row in enumerate(rows):
            length = int(samples.lengths[row])
            tokens = samples.token_ids[starts[row] + 1 : starts[row] + length]
            assert float(found.sums[place].detach()) == float(tokens.sum())
            assert int(found.counts[place]) == length - 1
        found.sums[0].backward()
        assert values.grad is not None
        assert values.grad.tolist() == [1.0] * int(found.counts[0]) + [0.0] * int(
            found.counts[1:].sum()
        )
