"""Samples of text: spread over ranks without a change of the loss."""

from __future__ import annotations

import pytest
import torch

from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.objectives.text import spread_samples, text_objective
from rlhf_ray.records.supervised import LabelledTokens


def sample(first: int, length: int, *, masked: int) -> LabelledTokens:
    """Tokens first, first + 1, ...; the last `masked` of them are predicted."""
    mask = torch.zeros(length, dtype=torch.bool)
    mask[length - masked :] = True
    return LabelledTokens(token_ids=torch.arange(first, first + length), loss_mask=mask)


SAMPLES = [
    sample(100, 5, masked=4),
    sample(200, 3, masked=0),
    sample(300, 7, masked=2),
    sample(400, 2, masked=1),
]


def plan(num_ranks: int, *, budget: int = 100, layout: str = "padded") -> RankPlan:
    return RankPlan(num_ranks=num_ranks, max_tokens_per_micro_batch=budget, layout=layout)


@pytest.mark.parametrize("layout", ["padded", "packed", "auto"])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_every_token_is_on_one_rank(num_ranks: int, layout: str) -> None:
    spread = spread_samples(SAMPLES, plan(num_ranks, budget=8, layout=layout))
    assert len(spread) == num_ranks
    masked = {
        int(token)
        for samples in spread
        for token, chosen in zip(samples.token_ids, samples.loss_mask, strict=True)
        if chosen
    }
    assert masked == {101, 102, 103, 104, 305, 306, 401}
    assert sum(samples.token_ids.numel() for samples in spread) == 17
    assert {len(samples.micro_batches) for samples in spread} == {len(spread[0].micro_batches)}


def test_counts_are_global() -> None:
    for samples in spread_samples(SAMPLES, plan(2)):
        assert samples.num_loss_tokens == 7
        assert samples.num_sequences == 3


def test_shares_add_up_to_the_mean() -> None:
    logprobs = torch.tensor([-0.5, -1.0, -2.5, -4.0], requires_grad=True)
    parts = [text_objective(part, 4, name="x") for part in logprobs.split([3, 1])]
    assert sum(float(part.loss.detach()) for part in parts) == pytest.approx(2.0)
    assert sum(float(part.sums["x"]) for part in parts) == pytest.approx(2.0)
    torch.stack([part.loss for part in parts]).sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-0.25] * 4


def test_the_coefficient_is_not_in_the_metric() -> None:
    objective = text_objective(torch.tensor([-1.0, -3.0]), 2, name="x", coefficient=0.5)
    assert float(objective.loss) == 1.0
    assert float(objective.sums["x"]) == 2.0


def test_a_rank_without_samples_has_a_gradient_path() -> None:
    logprobs = torch.zeros(0, requires_grad=True)
    loss = text_objective(logprobs, 5, name="x").loss
    loss.backward()
    assert float(loss.detach()) == 0.0


def test_a_sample_over_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="sample 2 has 7 tokens"):
        spread_samples(SAMPLES, plan(1, budget=6))


@pytest.mark.parametrize(
    ("token_ids", "mask", "message"),
    [
        (torch.tensor([1, 2]), torch.tensor([True, True]), "first token"),
        (torch.tensor([1, 2]), torch.tensor([False]), "shape"),
    ],
)
def test_labels_that_cannot_be(token_ids: torch.Tensor, mask: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelledTokens(token_ids=token_ids, loss_mask=mask)
