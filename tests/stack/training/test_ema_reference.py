"""A reference that follows the policy: its EMA, on any number of ranks and at any ZeRO stage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.stack.training.conftest import Seen
from tests.stack.training.test_equality import relative_difference

pytestmark = [pytest.mark.stack, pytest.mark.slow]
DECAY = 0.9
STAGES = (0, 3)


def ranks_of(followed: Seen, scenario: str) -> list[dict[str, Any]]:
    return [followed.one[scenario], *(rank[scenario] for rank in followed.two)]


def by_hand(start: dict[str, Tensor], policies: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """EMA after each policy, in float64, number by number."""
    averages, now = [], {name: value.double() for name, value in start.items()}
    for policy in policies:
        now = {
            name: DECAY * value + (1 - DECAY) * policy[name].double() for name, value in now.items()
        }
        averages.append(now)
    return averages


@pytest.mark.parametrize("stage", STAGES)
def test_with_no_decay_the_reference_becomes_the_policy(followed: Seen, stage):
    for result in ranks_of(followed, f"moved_zero_{stage}"):
        start = result["first_scores"][0]
        for found, expected in zip(result["scores"], result["policy_scores"], strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
            assert float((expected[0] - start).abs().max()) > 1e-2
        for found, policy in zip(result["weights"], result["policies"], strict=True):
            assert found.keys() == policy.keys()
            assert all(torch.equal(found[name], policy[name]) for name in policy)


def test_a_second_copy_of_the_weights_follows(followed: Seen):
    """With hpZ forward passes read a copy of the shards; it must not be the one before."""
    for rank in followed.two:
        result = rank["moved_hpz"]
        for found, expected in zip(result["scores"], result["policy_scores"], strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert torch.equal(result["resumed_scores"][0], result["scores"][-1][0])


@pytest.mark.parametrize("stage", STAGES)
def test_the_average_equals_one_by_hand(followed: Seen, stage):
    for result in ranks_of(followed, f"averaged_zero_{stage}"):
        expected = by_hand(result["loaded"]["before"], result["policies"])
        for found, truth in zip(result["weights"], expected, strict=True):
            for name, value in truth.items():
                torch.testing.assert_close(found[name], value.float(), rtol=1e-6, atol=1e-7)
        last = result["weights"][-1]
        # The EMA is neither the initial weights nor the policy.
        for other in (result["loaded"]["before"], result["policies"][-1]):
            name = "model.embed_tokens.weight"
            assert float((last[name] - other[name]).abs().max()) > 1e-3


@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16_averages_in_float32(followed: Seen, stage):
    for result in ranks_of(followed, f"averaged_bfloat16_zero_{stage}"):
        expected = by_hand(result["loaded"]["before"], result["policies"])
        for found, truth in zip(result["weights"], expected, strict=True):
            for name, value in truth.items():
                assert found[name].dtype == torch.bfloat16
                # Rounded once, and not again in every update.
                torch.testing.assert_close(
                    found[name].double(), value, rtol=2**-8 * (1 + 1e-4), atol=1e-9
                )


@pytest.mark.parametrize("scenario", ["averaged_zero_3", "averaged_zero_0"])
def test_one_rank_equals_two(followed: Seen, scenario):
    one, *two = (result["weights"][-1] for result in ranks_of(followed, scenario))
    for rank in two:
        assert relative_difference(rank, one) < 1e-5


@pytest.mark.parametrize(
    "scenario",
    [
        *(f"averaged_zero_{stage}" for stage in STAGES),
        *(f"averaged_bfloat16_zero_{stage}" for stage in STAGES),
        *(f"moved_zero_{stage}" for stage in STAGES),
    ],
)
def test_a_resumed_reference_equals_the_straight_one(followed: Seen, scenario):
    for result in ranks_of(followed, scenario):
        for name, value in result["weights"][0].items():
            assert torch.equal(result["loaded"]["after"][name], value), name
            assert torch.equal(result["resumed_weights"][name], result["weights"][-1][name]), name
        assert torch.equal(result["loaded_scores"][0], result["scores"][0][0])
        assert torch.equal(result["resumed_scores"][0], result["scores"][-1][0])
        assert not torch.equal(result["loaded_scores"][0], result["first_scores"][0])


def test_weights_that_do_not_fit_are_refused(followed: Seen):
    for errors in ranks_of(followed, "refused_buckets"):
        assert "model.other.weight, which the reference has not" in errors["name"]
        assert (
            "embed_tokens.weight as [32, 260], and the reference has it as [260, 32]"
            in (errors["shape"])
        )
        assert "model.embed_tokens.weight twice" in errors["twice"]
        assert "did not send model.embed_tokens.weight" in errors["left_out"]
        assert "the reference has no lm_head.weight" in errors["check"]
        for name in ("name", "shape", "left_out", "check"):
            assert "set algorithm.reference_every to 0" in errors[name]


def test_a_checkpoint_of_another_stage_goes_on(followed: Seen):
    for result in ranks_of(followed, "moved_other_stage"):
        assert result["saved"]
        for name, value in result["saved"].items():
            assert torch.equal(result["loaded"][name], value), name
            assert not torch.equal(result["before"][name], value), name
