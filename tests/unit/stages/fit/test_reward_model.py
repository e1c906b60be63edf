"""Rankings that no forward pass can hold are refused before a worker starts."""

from __future__ import annotations

import pytest
import torch

from rlhf_ray.config.errors import RequestError
from rlhf_ray.data.examples import ExampleSet
from rlhf_ray.records.preferences import Ranking
from rlhf_ray.records.supervised import LabelledTokens
from rlhf_ray.stages.fit.reward_model import check_budget


def ranking(*lengths: int) -> Ranking:
    return Ranking(
        answers=tuple(
            LabelledTokens(token_ids=torch.arange(n) + 100 * k, loss_mask=torch.arange(n) > 0)
            for k, n in enumerate(lengths)
        ),
        margin=None,
    )


def examples(train: tuple[Ranking, ...], held_out: tuple[Ranking, ...]) -> ExampleSet[Ranking]:
    return ExampleSet(
        kind="rankings",
        train=train,
        held_out=held_out,
        num_cut=0,
        num_unended=0,
        skipped=(),
        vocabulary_size=1000,
        fingerprint="",
    )


def test_rankings_that_fit() -> None:
    """Three answers of 5 tokens are 15; the held-out rows are forward passes of their own."""
    check_budget(examples((ranking(5, 2), ranking(2, 3, 4)), (ranking(7, 7),)), 15)
    check_budget(examples((ranking(5, 2),), ()), 10)


@pytest.mark.parametrize(
    ("train", "held_out", "message"),
    [
        ((ranking(5, 2), ranking(2, 3, 4)), (), "3 answers of 5 tokens.*at least 15"),
        ((ranking(2, 2),), (ranking(8, 3),), "2 answers of 8 tokens.*at least 16"),
    ],
)
def test_rankings_that_do_not(
    train: tuple[Ranking, ...], held_out: tuple[Ranking, ...], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        check_budget(examples(train, held_out), 14)
