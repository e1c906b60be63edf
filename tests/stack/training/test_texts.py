"""Pretraining texts in the steps of a policy (PPO-ptx) with real DeepSpeed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.stack.training.conftest import Seen
from tests.stack.training.mixture import PTX_COEFFICIENT, TEXT_LENGTHS, make_texts
from tests.stack.training.test_equality import assert_same_metrics, relative_difference

pytestmark = pytest.mark.stack


def plain_text_loss(folder: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Ground truth in float64: mean over all predicted tokens, one text after the other."""
    model = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    for tokens in make_texts():
        # No temperature: these were not sampled.
        logits = model(input_ids=tokens[None]).logits[0]
        total = total + torch.nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="sum")
    loss = total / (sum(TEXT_LENGTHS) - len(TEXT_LENGTHS))
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_the_gradient_is_the_policy_s_plus_the_coefficient_times_the_texts(seen: Seen):
    loss, gradient = plain_text_loss(seen.folder)
    mixed, policy = seen.one["with_texts"], seen.one["policy_gradient"]
    expected = {
        name: value.double() + PTX_COEFFICIENT * gradient[name.removeprefix("model.")]
        for name, value in policy["gradient"].items()
    }
    assert mixed["num_steps"] == 1, "one optimiser step for both"
    assert relative_difference(mixed["gradient"], expected) < 1e-5
    assert relative_difference(mixed["gradient"], policy["gradient"]) > 0.1
    assert mixed["metrics"]["policy/ptx_loss"] == pytest.approx(loss.item(), rel=1e-5)
    # Metrics of the policy do not change, but the norm of the gradient does.
    shared = {name: value for name, value in policy["metrics"].items() if "grad_norm" not in name}
    assert_same_metrics({name: mixed["metrics"][name] for name in shared}, shared, rel=1e-6)
    assert mixed["metrics"].keys() - policy["metrics"].keys() == {"policy/ptx_loss"}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_one_rank_equals_two_with_uneven_texts(seen: Seen, stage):
    one = seen.one["with_texts"]
    ranks = [rank[f"with_texts_zero_{stage}"] for rank in seen.two]
    numbers = [rank["num_tokens"] for rank in ranks]
    assert sum(numbers) == sum(TEXT_LENGTHS)
    assert numbers[0] != numbers[1]
    for found in ranks:
        assert relative_difference(found["gradient"], one["gradient"]) < 1e-6
        assert_same_metrics(found["metrics"], one["metrics"], rel=2e-6)


def test_texts_are_learnt_with_a_coefficient_and_only_measured_with_next_to_none(seen: Seen):
    learnt, measured = (
        seen.one[name]["losses"] for name in ("texts_learnt", "texts_only_measured")
    )
    # The first update is two optimiser steps: the second one already sees what the first has done.
    assert learnt[-1] < 0.8 * learnt[0]
    assert measured[-1] > 0.95 * measured[0]
