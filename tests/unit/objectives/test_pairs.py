"""The loss of compared answers in a micro-batch, against sums by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rlhf_ray.batching.layout import MicroBatch, lay_out
from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.config.groups.fit import PreferenceConfig
from rlhf_ray.objectives.pairs import pair_objective
from rlhf_ray.objectives.policy import Objective
from rlhf_ray.objectives.preference_batches import PreferenceGroup, spread_preference_groups
from rlhf_ray.records.preferences import PreferenceSamples
from rlhf_ray.records.supervised import LabelledTokens


def answer(*predicted: int) -> LabelledTokens:
    """A prompt of two tokens, then these."""
    mask = torch.tensor([False, False] + [True] * len(predicted))
    return LabelledTokens(token_ids=torch.tensor([1, 2, *predicted]), loss_mask=mask)


def preference_group(*answers: tuple[int, ...], reference: tuple[float, ...]) -> PreferenceGroup:
    return PreferenceGroup(
        answers=tuple(answer(*tokens) for tokens in answers),
        ranks=tuple(range(len(answers))),
        margin=0.0,
        reference_logprobs=reference,
    )


# A predicted token t has the log-probability -t / 10.
PAIR = preference_group((10, 20), (30,), reference=(-2.5, -4.0))
OTHER_PAIR = preference_group((40,), (10, 10, 10), reference=(-4.0, -2.0))
TRIPLE = preference_group((10,), (20,), (40,), reference=(0.0, 0.0, 0.0))


def batches(
    preference_groups: list[PreferenceGroup], num_ranks: int
) -> list[tuple[PreferenceSamples, MicroBatch]]:
    plan = RankPlan(num_ranks=num_ranks, max_tokens_per_micro_batch=1000)
    return [
        (
            samples,
            lay_out(
                samples.token_ids,
                samples.lengths,
                samples.loss_mask,
                samples.support_token_ids,
                rows,
            ),
        )
        for samples in spread_preference_groups(preference_groups, plan)
        for rows in samples.micro_batches
    ]


def parts(
    preference_groups: list[PreferenceGroup], num_ranks: int = 1, **settings: Any
) -> list[Objective]:
    return [
        pair_objective(
            -batch.targets[: batch.num_targets].float() / 10,
            samples,
            batch,
            preference=PreferenceConfig(**settings),
            phase="train",
        )
        for samples, batch in batches(preference_groups, num_ranks)
    ]


def total(objectives: list[Objective]) -> dict[str, float]:
    names = objectives[0].sums
    return {name: sum(float(part.sums[name]) for part in objectives) for name in names}


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def test_sigmoid_by_hand() -> None:
    found = total(parts([PAIR, OTHER_PAIR], beta=0.5))
    # Log ratios: -3 + 2.5 = -0.5 and -3 + 4 = 1; -4 + 4 = 0 and -3 + 2 = -1.
    assert found["train/loss"] == pytest.approx((softplus(0.75) + softplus(-0.5)) / 2)
    assert found["train/accuracy"] == 0.5
    assert found["train/reward_margin"] == pytest.approx((-0.75 + 0.5) / 2)
    assert found["train/chosen_reward"] == pytest.approx(-0.125)
    assert found["train/rejected_reward"] == 0.0


def test_lengths_are_those_of_the_answers() -> None:
    found = total(parts([PAIR], beta=0.5, divide_by_length=True))
    # Two tokens and one: -0.25 and 1.
    assert found["train/loss"] == pytest.approx(softplus(0.5 * 1.25))


def test_settings_reach_the_loss() -> None:
    gap = -1.5
    ipo = total(parts([PAIR], loss="ipo", beta=0.5))
    assert ipo["train/loss"] == pytest.approx((gap - 1.0) ** 2)
    smoothed = total(parts([PAIR], beta=0.5, label_smoothing=0.2))
    expected = 0.8 * softplus(0.75) + 0.2 * softplus(-0.75)
    assert smoothed["train/loss"] == pytest.approx(expected)


def test_a_ranking_counts_once() -> None:
    found = total(parts([PAIR, TRIPLE], beta=0.5))
    # Log ratios of the three: -1, -2, -4.
    triple = (softplus(-0.5) + softplus(-1.5) + softplus(-1.0)) / 3
    assert found["train/loss"] == pytest.approx((softplus(0.75) + triple) / 2)
    assert found["train/accuracy"] == 0.5


def test_likelihood_of_the_best_answers() -> None:
    plain = total(parts([PAIR, TRIPLE]))
    found = total(parts([PAIR, TRIPLE], sft_coefficient=2.0))
    # 1 + 2 over two tokens, and 1 over one.
    assert found["train/sft_loss"] == pytest.approx((1.5 + 1.0) / 2)
    assert found["train/loss"] == pytest.approx(plain["train/loss"] + 2.0 * 1.25)
    assert "train/sft_loss" not in plain


def test_a_rank_without_a_ranking_adds_nothing() -> None:
    alone = total(parts([PAIR]))
    shared = parts([PAIR], num_ranks=2, sft_coefficient=0.0)
    assert len(shared) == 2
    assert total(shared) == alone


def test_the_gradient_is_that_of_the_mean() -> None:
    ((samples, batch),) = batches([PAIR], 1)
    logprobs = (-batch.targets[: batch.num_targets].float() / 10).requires_grad_(True)
    objective = pair_objective(
        logprobs, samples, batch, preference=PreferenceConfig(beta=0.5), phase="train"
    )
    objective.loss.backward()
    pull = 0.5 / (1 + math.exp(-0.75))
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-pull, -pull, pull])
