"""Advantages of a whole batch: the table of estimators, rewards, whitening and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.algorithms.advantages.gae import gae
from rlhf_ray.algorithms.advantages.group_advantages import group_advantages
from rlhf_ray.algorithms.advantages.maxrl import maxrl_advantages
from rlhf_ray.algorithms.advantages.moving_baseline import baseline_advantages
from rlhf_ray.algorithms.advantages.opo import opo_advantages
from rlhf_ray.algorithms.advantages.process_rewards import process_advantages
from rlhf_ray.algorithms.advantages.remax import remax_advantages
from rlhf_ray.algorithms.advantages.returns import returns_to_go
from rlhf_ray.algorithms.advantages.rloo import rloo_advantages
from rlhf_ray.algorithms.advantages.whitening import whiten, whiten_by_task
from rlhf_ray.algorithms.kl import token_kl
from rlhf_ray.algorithms.ragged import count_by_segment, spread_over_tokens, sum_by_segment
from rlhf_ray.algorithms.rewards.token_rewards import (
    discount_by_position,
    sample_rewards,
    step_token_rewards,
    token_rewards,
)
from rlhf_ray.config.groups.algorithm import AlgorithmConfig
from rlhf_ray.experience.rollout_batch import BatchSteps, RolloutBatch
from rlhf_ray.records import Coefficients


@dataclass(frozen=True, kw_only=True, slots=True)
class Advantages:
    """Advantages and returns of a batch.

    Attributes:
        advantages [N] float32: as trained on, whitened where configured.
        returns [N] float32: targets of the critic; 0.0 without one.
        metrics: flat metric names to numbers.
    """

    advantages: Tensor
    returns: Tensor
    metrics: dict[str, float]


# A row of the first table: rewards per sample [S] to advantages per sample [S].
_SampleEstimator = Callable[[Tensor, RolloutBatch, AlgorithmConfig, Coefficients], Tensor]
# A row of the second: rewards per token [N] to advantages [N] and returns [N].
_TokenEstimator = Callable[[Tensor, RolloutBatch, AlgorithmConfig], tuple[Tensor, Tensor]]


def _group(
    rewards: Tensor, batch: RolloutBatch, algorithm: AlgorithmConfig, _: Coefficients
) -> Tensor:
    return group_advantages(
        rewards,
        batch.group_sizes,
        normalize_by_std=algorithm.normalize_by_std,
        std_epsilon=algorithm.group_std_epsilon,
        std_estimator=algorithm.group_std_estimator,
        tolerance=algorithm.reward_tolerance,
    )


def _rloo(rewards: Tensor, batch: RolloutBatch, *_: object) -> Tensor:
    return rloo_advantages(rewards, batch.group_sizes)


def _opo(rewards: Tensor, batch: RolloutBatch, *_: object) -> Tensor:
    lengths = count_by_segment(batch.loss_mask, batch.lengths).double()
    return opo_advantages(rewards, lengths, batch.group_sizes)


def _maxrl(rewards: Tensor, batch: RolloutBatch, *_: object) -> Tensor:
    return maxrl_advantages(rewards, batch.group_sizes)


def _remax(rewards: Tensor, batch: RolloutBatch, *_: object) -> Tensor:
    """ReMax. The greedy answer is the last sample of its group and has an advantage of 0."""
    greedy = rewards[~batch.trained]
    return remax_advantages(rewards, greedy, batch.group_sizes)


def _baseline(
    rewards: Tensor, _: RolloutBatch, __: AlgorithmConfig, coefficients: Coefficients
) -> Tensor:
    return baseline_advantages(rewards, coefficients.reward_baseline)


def _returns(
    rewards: Tensor, batch: RolloutBatch, algorithm: AlgorithmConfig
) -> tuple[Tensor, Tensor]:
    returns = returns_to_go(rewards, batch.lengths, batch.loss_mask, gamma=algorithm.gamma)
    return returns, torch.zeros_like(returns)


def _gae(rewards: Tensor, batch: RolloutBatch, algorithm: AlgorithmConfig) -> tuple[Tensor, Tensor]:
    return gae(
        rewards,
        batch.values.double(),
        batch.lengths,
        batch.loss_mask,
        gamma=algorithm.gamma,
        gae_lambda=algorithm.gae_lambda,
        # 0 unless answers that were cut off are bootstrapped.
        bootstrap=batch.final_values,
    )


def _process(_: Tensor, batch: RolloutBatch, algorithm: AlgorithmConfig) -> tuple[Tensor, Tensor]:
    """Process supervision. Steps of masked answers stay in the baseline, as rewards do."""
    steps = _steps_of(batch)
    advantages = process_advantages(
        steps.rewards,
        steps.ends,
        batch.lengths,
        batch.loss_mask | steps.ends,
        batch.group_sizes,
        normalize_by_std=algorithm.normalize_by_std,
        std_epsilon=algorithm.group_std_epsilon,
        std_estimator=algorithm.group_std_estimator,
        tolerance=algorithm.reward_tolerance,
    )
    return torch.where(batch.loss_mask, advantages, 0.0), torch.zeros_like(advantages)


SAMPLE_ADVANTAGES: dict[str, _SampleEstimator] = {
    "group": _group,
    "rloo": _rloo,
    "opo": _opo,
    "maxrl": _maxrl,
    "baseline": _baseline,
    "remax": _remax,
}
TOKEN_ADVANTAGES: dict[str, _TokenEstimator] = {
    "returns": _returns,
    "gae": _gae,
    "process": _process,
}


def estimate_advantages(
    batch: RolloutBatch, *, algorithm: AlgorithmConfig, coefficients: Coefficients
) -> Advantages:
    """Advantages and returns of a whole batch, once, before it is split over ranks.

    The KL penalty enters the rewards when `algorithm.kl_placement` is "reward". The metrics
    describe advantages before whitening: afterwards mean and deviation are 0 and 1.
    """
    kl = _penalty(batch, algorithm, coefficients)
    if algorithm.advantage in SAMPLE_ADVANTAGES:
        rewards = sample_rewards(
            batch.rewards,
            kl,
            batch.lengths,
            batch.loss_mask,
            kl_coefficient=coefficients.kl,
            reward_clip=algorithm.reward_clip,
        )
        per_sample = SAMPLE_ADVANTAGES[algorithm.advantage](rewards, batch, algorithm, coefficients)
        advantages = spread_over_tokens(per_sample, batch.lengths, batch.loss_mask)
        returns = torch.zeros_like(advantages)
    else:
        rewards = _token_rewards(batch, kl, algorithm, coefficients)
        advantages, returns = TOKEN_ADVANTAGES[algorithm.advantage](rewards, batch, algorithm)
    metrics = _advantage_metrics(batch, advantages)
    if algorithm.rewards_steps:
        metrics |= _step_metrics(batch)
    if algorithm.advantage == "gae":
        metrics |= _value_metrics(batch, returns)
    if algorithm.whiten_per_task:
        advantages = whiten_by_task(advantages, batch.lengths, batch.loss_mask, batch.tasks)
    elif algorithm.whiten_advantages:
        advantages = whiten(advantages, batch.loss_mask)
    return Advantages(advantages=advantages.float(), returns=returns.float(), metrics=metrics)


def _token_rewards(
    batch: RolloutBatch, kl: Tensor, algorithm: AlgorithmConfig, coefficients: Coefficients
) -> Tensor:
    """The reward of every token [N], from the outcome or from the steps."""
    if algorithm.reward_level == "step":
        steps = _steps_of(batch)
        return step_token_rewards(
            steps.rewards,
            steps.ends,
            kl,
            batch.loss_mask,
            kl_coefficient=coefficients.kl,
        )
    return token_rewards(
        batch.rewards,
        kl,
        batch.lengths,
        batch.loss_mask,
        kl_coefficient=coefficients.kl,
        reward_clip=algorithm.reward_clip,
    )


def _steps_of(batch: RolloutBatch) -> BatchSteps:
    assert batch.steps is not None, "the algorithm trains on steps, and the batch has none"
    return batch.steps


def _penalty(batch: RolloutBatch, algorithm: AlgorithmConfig, coefficients: Coefficients) -> Tensor:
    """The KL of every token [N] that the rewards are reduced by; 0 without such a penalty."""
    if algorithm.kl_placement != "reward" or coefficients.kl == 0:
        return torch.zeros_like(batch.old_logprobs)
    kl = token_kl(
        batch.old_logprobs,
        batch.reference_logprobs,
        batch.loss_mask,
        estimator=algorithm.kl_estimator,
    )
    return discount_by_position(
        kl, batch.lengths, batch.loss_mask, discount=algorithm.kl_position_discount
    )


def _advantage_metrics(batch: RolloutBatch, advantages: Tensor) -> dict[str, float]:
    tokens_per_group = sum_by_segment(
        batch.lengths.double(), batch.group_sizes, torch.ones_like(batch.lengths, dtype=torch.bool)
    ).long()
    signal = count_by_segment(batch.loss_mask & (advantages != 0), tokens_per_group)
    trained = advantages[batch.loss_mask]
    return {
        "advantages/mean": float(trained.mean()) if trained.numel() else 0.0,
        "advantages/std": float(trained.std()) if trained.numel() > 1 else 0.0,
        "advantages/zero_group_fraction": float((signal == 0).double().mean()),
    }


def _step_metrics(batch: RolloutBatch) -> dict[str, float]:
    """Steps per sample, and the mean reward of a step."""
    steps = _steps_of(batch)
    rewards = steps.rewards[steps.ends]
    return {
        "steps/per_sample": rewards.numel() / batch.lengths.shape[0],
        "steps/reward_mean": float(rewards.mean()) if rewards.numel() else 0.0,
    }


def _value_metrics(batch: RolloutBatch, returns: Tensor) -> dict[str, float]:
    """Explained variance is 1 - var(R - V) / var(R); 0 where the returns do not vary."""
    trained = returns[batch.loss_mask]
    error = trained - batch.values[batch.loss_mask].double()
    spread = float(trained.var()) if trained.numel() > 1 else 0.0
    return {
        "returns/mean": float(trained.mean()) if trained.numel() else 0.0,
        "value/explained_variance": 1.0 - float(error.var()) / spread if spread > 0 else 0.0,
    }
