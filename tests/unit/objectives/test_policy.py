"""The share of a micro-batch in loss and metrics, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlhf_ray.config.groups.algorithm import AlgorithmConfig, OldLogprobsFrom
from rlhf_ray.objectives.policy import Predicted, policy_objective, value_objective
from rlhf_ray.records import Coefficients, Experience

T, F = True, False


def experience() -> Experience:
    """One sample of a prompt token and three sampled ones; 8 are sampled over all ranks."""
    return Experience(
        token_ids=torch.tensor([1, 2, 3, 4]),
        lengths=torch.tensor([4]),
        loss_mask=torch.tensor([F, T, T, T]),
        advantages=torch.tensor([9.0, 1.0, -2.0, 3.0]),
        old_logprobs=torch.tensor([9.0, -1.0, -1.0, -1.0]),
        generator_logprobs=torch.tensor([9.0, -1.0, -1.5, -1.0]),
        support_token_ids=None,
        reference_support_logprobs=None,
        reference_logprobs=torch.tensor([9.0, -1.0, -2.0, -1.0]),
        returns=torch.tensor([9.0, 1.0, 0.0, 1.0]),
        values=torch.tensor([9.0, 0.0, 0.0, 0.5]),
        importance_weights=torch.tensor([0.0, 1.0, 1.0, 1.0]),
        covariance_selected=torch.tensor([F, F, F, F]),
        micro_batches=((0,),),
        num_loss_tokens=8,
        num_sequences=2,
        num_positive_tokens=4,
        old_logprobs_from=OldLogprobsFrom.LEARNER_BEFORE_UPDATE,
    )


INDEX = torch.tensor([1, 2, 3])


def policy(
    logprobs: list[float], experience: Experience, *, kept: Tensor | None = None, **overrides
):
    leaf = torch.tensor(logprobs, requires_grad=True)
    objective = policy_objective(
        Predicted(
            logprobs=leaf,
            entropy=torch.tensor([1.0, 2.0, 3.0])[: len(logprobs)],
            support_logprobs=kept,
        ),
        experience,
        INDEX[: len(logprobs)],
        **{
            "algorithm": AlgorithmConfig(kl_estimator="k2"),
            "coefficients": Coefficients(),
            "constant_length": 10,
            "compare_with_generator": True,
            **overrides,
        },
    )
    return objective, leaf


def test_whole_distributions_are_compared_where_that_is_asked_for():
    kept = torch.tensor([[0.5, 0.5], [0.8, 0.2], [1.0, 0.0]]).log()
    reference = torch.tensor([[9.0, 9.0], [0.5, 0.5], [0.5, 0.5], [1.0, 0.0]]).log()
    objective, _ = policy(
        [-1.0, -1.0, -1.0],
        replace(experience(), reference_support_logprobs=reference),
        kept=kept,
        algorithm=AlgorithmConfig(kl_estimator="full"),
        coefficients=Coefficients(kl=0.5),
    )
    divergence = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert objective.sums["kl/loss"].item() == pytest.approx(0.5 * divergence / 8)


def test_policy_loss_and_metrics_by_hand():
    # Ratios 1, e^0.5 (over 1.2, but A < 0: not clipped), e^0.5 (clipped at 1.2 since A > 0).
    objective, leaf = policy([-1.0, -0.5, -0.5], experience())
    unclipped = 2 * math.exp(0.5)
    assert objective.loss.item() == pytest.approx((-1.0 + unclipped - 3 * 1.2) / 8)
    objective.loss.backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == pytest.approx([-1 / 8, unclipped / 8, 0.0])
    sums = {name: value.item() for name, value in objective.sums.items()}
    assert sums == pytest.approx(
        {
            "policy/loss": objective.loss.item(),
            "policy/entropy": 6 / 8,
            "policy/clip_fraction": 1 / 8,
            "policy/log_ratio_clamped_fraction": 0.0,
            # k3 of old against current: e^0.5 - 1 - 0.5, twice.
            "policy/approx_kl": 2 * (math.exp(0.5) - 1.5) / 8,
            "rollout/logprob_gap_mean": (0.0 + 1.0 + 0.5) / 8,
        }
    )
    assert objective.maxima["rollout/logprob_gap_max"].item() == 1.0


def test_the_shortcut_takes_the_policy_itself_as_the_old_one():
    objective, leaf = policy(
        [-1.0, -0.5, -0.5],
        replace(experience(), old_logprobs_from=OldLogprobsFrom.LEARNER_IN_UPDATE),
    )
    objective.loss.backward()
    # The ratio is 1: the gradient is that of -A * logprob.
    assert leaf.grad is not None
    assert leaf.grad.tolist() == pytest.approx([-1 / 8, 2 / 8, -3 / 8])
    assert objective.sums["policy/clip_fraction"].item() == 0.0
    assert objective.sums["policy/approx_kl"].item() == 0.0


def test_the_penalty_in_the_loss():
    plain, _ = policy([-1.0, -1.0, -1.0], experience())
    objective, leaf = policy([-1.0, -1.0, -1.0], experience(), coefficients=Coefficients(kl=0.5))
    # k2 of a distance of 1 on the second token alone.
    penalty = 0.5 * 0.5 / 8
    assert objective.loss.item() - plain.loss.item() == pytest.approx(penalty)
    assert objective.sums["kl/loss"].item() == pytest.approx(penalty)
    assert objective.sums["policy/loss"].item() == pytest.approx(plain.loss.item())
    objective.loss.backward()
    assert leaf.grad is not None
    assert leaf.grad[1].item() == pytest.approx(2 / 8 + 0.5 / 8)


def test_the_gap_is_left_out_after_the_weights_have_changed():
    objective, _ = policy([-1.0, -1.0, -1.0], experience(), compare_with_generator=False)
    assert "rollout/logprob_gap_mean" not in objective.sums
    assert objective.maxima == {}


def test_without_tokens_there_is_a_loss_of_zero_with_a_gradient():
    objective, leaf = policy([], experience(), coefficients=Coefficients(kl=0.5))
    assert objective.loss.item() == 0.0
    objective.loss.backward()
    assert leaf.grad is not None
    assert all(value.item() == 0.0 for value in objective.sums.values())
    assert objective.maxima["rollout/logprob_gap_max"].item() == 0.0


def test_value_loss_by_hand():
    # Errors 0.5 (moved by 0.5, clip 0.2: pessimistic 0.8), 0.1, 0 (but clipped at 0.7: 0.3).
    leaf = torch.tensor([0.5, 0.1, 1.0], requires_grad=True)
    objective = value_objective(
        leaf, experience(), INDEX, algorithm=AlgorithmConfig(value_clip=0.2)
    )
    expected = 0.5 * (0.8**2 + 0.1**2 + 0.3**2) / 8
    assert objective.loss.item() == pytest.approx(expected)
    assert objective.sums["value/loss"].item() == pytest.approx(expected)
    assert objective.sums["value/clip_fraction"].item() == pytest.approx(2 / 8)
    objective.loss.backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == pytest.approx([0.0, 0.1 / 8, 0.0])


def test_value_loss_without_clipping():
    leaf = torch.tensor([0.5, 0.1, 1.0], requires_grad=True)
    objective = value_objective(
        leaf, experience(), INDEX, algorithm=AlgorithmConfig(value_clip=None)
    )
    assert objective.loss.item() == pytest.approx(0.5 * (0.25 + 0.01) / 8)
