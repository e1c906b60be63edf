"""The optimiser step: clipping, weight decay, learning rate, refusals."""

from __future__ import annotations

import math

import pytest
import torch

from tests.stack.training.conftest import Seen

pytestmark = pytest.mark.stack


@pytest.mark.parametrize(
    "scenario", ["clipped", "clipped_zero_0", "clipped_zero_2", "clipped_zero_3"]
)
def test_first_adamw_step_by_hand(seen: Seen, scenario):
    """The first step of AdamW is -rate * g / (|g| + epsilon), after decay and clipping.

    The large epsilon lets the size of the clipped gradient show.
    """
    result = (seen.one if scenario == "clipped" else seen.two[0])[scenario]
    gradient = {n.removeprefix("model."): g for n, g in result["gradient"].items()}
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradient.values()))
    assert norm > 0.1, "the gradient must be one that is clipped"
    assert result["metrics"]["policy/grad_norm"] == pytest.approx(norm, rel=1e-5)
    rate = 1e-2 / 3
    assert result["metrics"]["policy/learning_rate"] == pytest.approx(rate)
    for name, g in gradient.items():
        before = result["before"][name]
        decayed = before * (1 - rate * 0.1) if before.dim() > 1 else before
        clipped = g * (0.01 / (norm + 1e-6))
        expected = decayed - rate * clipped / (clipped.abs() + 1e-2)
        torch.testing.assert_close(result["after"][name], expected, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_weight_decay_is_for_matrices_alone(seen: Seen, stage):
    if stage == 0:
        result = seen.one["nothing_to_learn"]
    else:
        result = seen.two[0][f"nothing_to_learn_zero_{stage}"]
    assert result["metrics"]["policy/grad_norm"] == 0.0
    kinds = set()
    for name, before in result["before"].items():
        kinds.add(before.dim() > 1)
        expected = before * (1 - 1e-2 * 0.1) if before.dim() > 1 else before
        torch.testing.assert_close(result["after"][name], expected, rtol=1e-6, atol=1e-9)
    assert kinds == {True, False}


def test_learning_rates_of_a_run_by_hand(seen: Seen):
    """Ten steps, three of warm-up; the resumed run is at steps 1 and 2 of them."""
    straight = seen.two[0]["resume_zero_0"]["straight"]
    rates = [metrics["policy/learning_rate"] for metrics in straight]
    assert rates == pytest.approx([1e-2 * 2 / 3, 1e-2])


def test_several_experiences_are_several_steps(seen: Seen):
    result = seen.one["several_steps_in_one_update"]
    for name, value in result["weights"].items():
        torch.testing.assert_close(value, result["weights_apart"][name], rtol=1e-6, atol=1e-8)
    first, second = result["apart"]
    together = result["together"]
    for name in ("policy/loss", "policy/grad_norm", "policy/entropy"):
        mean = (first[name] + second[name]) / 2
        assert together[name] == pytest.approx(mean, rel=1e-5), name
    # After the first step the weights differ from those that the engine sampled with.
    assert together["rollout/logprob_gap_mean"] == first["rollout/logprob_gap_mean"]
    assert together["rollout/logprob_gap_mean"] != second["rollout/logprob_gap_mean"]
    assert together["policy/learning_rate"] == second["policy/learning_rate"]
    assert together["tokens/trained"] == first["tokens/trained"] + second["tokens/trained"]


def test_a_gradient_that_is_not_finite_is_refused(seen: Seen):
    errors = seen.one["not_finite"]
    assert set(errors) == {0, 2}
    for error in errors.values():
        assert error.startswith("the gradient of optimiser step 0 is not finite: lower the")


def test_ranks_that_disagree_are_refused(seen: Seen):
    for rank in seen.two:
        errors = rank["mismatch"]
        assert "different numbers of micro-batches per optimiser step" in errors["micro_batches"]
        assert "between [1] and [2]" in errors["micro_batches"]
        assert "different numbers of optimiser steps: between [1] and [2]" in errors["steps"]


def test_a_gpu_that_is_not_there_is_refused(seen: Seen):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "sees no GPU" in seen.one["no_gpu"]["error"]
    assert "num_gpus=0 runs this role on the CPU" in seen.one["no_gpu"]["error"]
