"""Feedback: what an answer is compared with, and the loss of a micro-batch by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_ray.batching.layout import lay_out
from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.config.groups.fit import PreferenceConfig
from rlhf_ray.objectives.feedback import (
    BAD,
    GOOD,
    Judged,
    feedback_objective,
    log_ratio_objective,
    mismatched_pairs,
    spread_feedback,
)
from rlhf_ray.objectives.preference_batches import PreferenceGroup
from rlhf_ray.records.preferences import Feedback
from rlhf_ray.records.supervised import LabelledTokens


def sample(prompt: tuple[int, ...], answer: tuple[int, ...]) -> LabelledTokens:
    mask = torch.tensor([False] * len(prompt) + [True] * len(answer))
    return LabelledTokens(token_ids=torch.tensor([*prompt, *answer]), loss_mask=mask)


def feedback(prompt: tuple[int, ...], answer: tuple[int, ...]) -> Feedback:
    return Feedback(sample=sample(prompt, answer), is_good=True)


def test_a_prompt_gets_the_answer_to_another_one() -> None:
    rows = [
        feedback((1,), (10,)),
        feedback((2, 2), (20, 21)),
        feedback((2, 2), (22,)),
        feedback((3,), (30, 31, 32)),
        feedback((1,), (11,)),
    ]
    found = mismatched_pairs(rows, max_tokens=4)
    assert [pair.token_ids.tolist() for pair in found] == [
        # The row before the first is the last, which has the same prompt; so the one before it.
        [1, 30, 31, 32],
        [2, 2, 10],
        [2, 2, 10],
        [3, 22],
        [1, 30, 31, 32],
    ]
    assert [int(pair.loss_mask.sum()) for pair in found] == [3, 1, 1, 1, 3]
    short = mismatched_pairs(rows, max_tokens=3)[0]
    assert (short.token_ids.tolist(), short.loss_mask.tolist()) == (
        [1, 30, 31],
        [False, True, True],
    )


def test_one_prompt_cannot_be_mismatched() -> None:
    with pytest.raises(ValueError, match="the same"):
        mismatched_pairs([feedback((1,), (10,)), feedback((1,), (11,))], max_tokens=4)


def alone(tokens: tuple[int, ...], rank: int, reference: float) -> PreferenceGroup:
    return PreferenceGroup(
        answers=(sample((1,), tokens),), ranks=(rank,), margin=0.0, reference_logprobs=(reference,)
    )


# A predicted token t has the log-probability -t / 10.
ROWS = [
    Judged(answer=alone((10,), GOOD, -3.0), mismatched=alone((10, 10), GOOD, -3.5)),
    Judged(answer=alone((10, 20), BAD, -2.0), mismatched=alone((30,), GOOD, -3.5)),
    Judged(answer=alone((20,), BAD, -4.0), mismatched=alone((20,), GOOD, -1.0)),
]


def totals(
    num_ranks: int, preference: PreferenceConfig, rows: list[Judged] | None = None
) -> dict[str, float]:
    plan = RankPlan(num_ranks=num_ranks, max_tokens_per_micro_batch=6)
    spread = spread_feedback(rows or ROWS, plan)
    found: dict[str, float] = {}

    def add(sums: dict[str, torch.Tensor]) -> None:
        for name, value in sums.items():
            found[name] = found.get(name, 0.0) + float(value)

    for part in ("mismatched", "judged"):
        mean = found.get("log_ratio", math.nan)
        for own in spread:
            samples = getattr(own, part)
            for rows in samples.micro_batches:
                batch = lay_out(
                    samples.token_ids,
                    samples.lengths,
                    samples.loss_mask,
                    samples.support_token_ids,
                    rows,
                )
                logprobs = -batch.targets[: batch.num_targets].float() / 10
                if part == "mismatched":
                    add(log_ratio_objective(logprobs, samples, batch, name="log_ratio").sums)
                    continue
                objective = feedback_objective(
                    logprobs,
                    own,
                    samples,
                    batch,
                    mean_log_ratio=mean,
                    preference=preference,
                    phase="train",
                )
                add(objective.sums)
    return found


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_loss_by_hand(num_ranks: int) -> None:
    found = totals(
        num_ranks, PreferenceConfig(loss="kto", beta=0.5, desirable_weight=2, undesirable_weight=3)
    )
    # Mismatched: -2 + 3.5, -3 + 3.5, -2 + 1. Judged: 2 (good), -1 and 2 (bad).
    mean = (1.5 + 0.5 - 1.0) / 3
    assert found["log_ratio"] == pytest.approx(mean)
    losses = [
        2 * (1 - sigmoid(0.5 * (2 - mean))),
        3 * (1 - sigmoid(0.5 * (mean + 1))),
        3 * (1 - sigmoid(0.5 * (mean - 2))),
    ]
    assert found["train/loss"] == pytest.approx(sum(losses) / 3)
    assert found["train/accuracy"] == pytest.approx(2 / 3)
    assert found["train/chosen_reward"] == pytest.approx(1.0)
    assert found["train/rejected_reward"] == pytest.approx(0.25)
    assert found["train/reward_margin"] == pytest.approx(0.75)


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize(
    ("rows", "named", "value"),
    [(ROWS[:1], "chosen", 1.0), (ROWS[1:], "rejected", 0.25)],
    ids=["good", "bad"],
)
def test_a_step_with_one_kind_reports_nothing_of_the_other(
    num_ranks: int, rows: list[Judged], named: str, value: float
) -> None:
    found = totals(num_ranks, PreferenceConfig(loss="kto", beta=0.5), rows)
    rewards = {name: found[name] for name in found if "reward" in name}
    assert rewards == {f"train/{named}_reward": pytest.approx(value)}
