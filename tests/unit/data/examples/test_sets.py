"""What the screen says about the sizes of a set."""

from __future__ import annotations

import pytest
import torch

from rlhf_ray.data.examples import ExampleSet, sets
from rlhf_ray.records.preferences import Ranking
from rlhf_ray.records.supervised import LabelledTokens


def sample(length: int) -> LabelledTokens:
    mask = torch.arange(length) > 0
    return LabelledTokens(token_ids=torch.arange(length), loss_mask=mask)


def described(held_out: list[LabelledTokens]) -> str:
    return ExampleSet(
        kind="texts",
        train=(sample(4), sample(10)),
        held_out=held_out,
        num_cut=0,
        num_unended=0,
        skipped=(),
        vocabulary_size=10,
        fingerprint="",
    ).describe()


def test_sizes_of_both_sides_are_said():
    first, second = described([]).splitlines()
    assert first == (
        "texts to learn from: 2, 4 to 10 tokens each (7 on average), 12 of 14 predicted"
    )
    assert second == "held out: none"


def test_tokens_of_compared_answers_are_not_called_predicted():
    told = ExampleSet(
        kind="rankings",
        train=(Ranking(answers=(sample(4), sample(10)), margin=None),),
        held_out=[],
        num_cut=0,
        num_unended=0,
        skipped=(),
        vocabulary_size=10,
        fingerprint="",
    ).describe()
    assert "1 with 2 answers, 4 to 10 tokens each (7 on average), 12 of 14 in answers" in told


@pytest.mark.parametrize(("limit", "is_many"), [(20, False), (19, True)])
def test_many_held_out_tokens_are_said_to_cost_memory(limit, is_many, monkeypatch):
    monkeypatch.setattr(sets, "MANY_HELD_OUT", limit)
    assert ("many held-out tokens: 20 are in the driver's memory" in described([sample(20)])) == (
        is_many
    )
