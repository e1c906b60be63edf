"""One batch of scored groups as flat tensors, and its advantages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.algorithms.gae import gae
from rlhf_ray.algorithms.group_advantages import group_advantages
from rlhf_ray.algorithms.kl import token_kl
from rlhf_ray.algorithms.ragged import count_by_segment, spread_over_tokens, sum_by_segment
from rlhf_ray.algorithms.rewards import sample_rewards, token_rewards
from rlhf_ray.algorithms.whitening import whiten
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.kept_tokens import join_kept
from rlhf_ray.records import RolloutGroup, TokenValues


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutBatch:
    """All samples of one step, in the order of the prompt stream.

    Attributes:
        token_ids [N] int64, lengths [S] int64, loss_mask [N] bool: ragged samples.
        group_sizes [G] int64: samples per group, none of them 0.
        rewards [S] float64: as scored, not clipped.
        generator_logprobs [N], old_logprobs [N]: 0.0 off the mask; the old ones are the
            generator's where the learner computed none.
        kept_token_ids [N, K] int32: as in `RolloutGroup`.
        reference_logprobs [N]: 0.0 off the mask, and everywhere without a reference.
        values [N]: the critic's, 0.0 off the mask, and everywhere without a critic.
    """

    token_ids: Tensor
    lengths: Tensor
    loss_mask: Tensor
    group_sizes: Tensor
    rewards: Tensor
    generator_logprobs: Tensor
    kept_token_ids: Tensor
    old_logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Advantages:
    """What the estimator made of a batch.

    Attributes:
        advantages [N] float32: as trained on, whitened where configured.
        returns [N] float32: targets of the critic; 0.0 without one.
        metrics: flat metric names to numbers.
    """

    advantages: Tensor
    returns: Tensor
    metrics: dict[str, float]


def flatten_groups(
    groups: Sequence[RolloutGroup],
    *,
    reference: Sequence[TokenValues] | None,
    values: Sequence[TokenValues] | None,
    old: Sequence[TokenValues] | None,
) -> RolloutBatch:
    """Groups in any order, and what the roles computed for them, as one flat batch.

    A group without a sample (all of them failed) has nothing to train on and is left out.
    """
    ordered = sorted(
        (group for group in groups if group.num_samples), key=lambda g: g.prompt.stream_index
    )
    assert ordered, "no group has a sample"
    for group in ordered:
        assert group.is_scored, f"the group of prompt {group.prompt.prompt_id} is not scored"
    mask = torch.cat([group.loss_mask for group in ordered])
    rewards = torch.cat([group.rewards for group in ordered]).double()
    assert bool(torch.isfinite(rewards).all()), "a reward is not finite; it should be a failure"

    def joined(role: str, computed: Sequence[TokenValues]) -> Tensor:
        by_prompt = {item.prompt_id: item.values for item in computed}
        parts = []
        for group in ordered:
            prompt_id = group.prompt.prompt_id
            assert prompt_id in by_prompt, f"the {role} computed nothing for prompt {prompt_id}"
            part, num_tokens = by_prompt[prompt_id], group.token_ids.shape[0]
            assert tuple(part.shape) == (num_tokens,), (
                f"the {role} gave {list(part.shape)} for the {num_tokens} tokens of {prompt_id}"
            )
            parts.append(part)
        return torch.where(mask, torch.cat(parts).float(), 0.0)

    generator = torch.cat([group.generator_logprobs for group in ordered]).float()
    generator = torch.where(mask, generator, 0.0)
    unused = torch.zeros_like(generator)
    return RolloutBatch(
        token_ids=torch.cat([group.token_ids for group in ordered]),
        lengths=torch.cat([group.lengths for group in ordered]),
        loss_mask=mask,
        group_sizes=torch.tensor([group.num_samples for group in ordered]),
        rewards=rewards,
        generator_logprobs=generator,
        kept_token_ids=join_kept([group.kept_token_ids for group in ordered]),
        old_logprobs=generator if old is None else joined("learner", old),
        reference_logprobs=unused if reference is None else joined("reference", reference),
        values=unused if values is None else joined("critic", values),
    )


# A row of the table: (batch, penalty per token [N], its weight, settings) to advantages [N]
# and returns [N].
_Estimate = Callable[[RolloutBatch, Tensor, float, AlgorithmConfig], tuple[Tensor, Tensor]]


def _from_group(
    batch: RolloutBatch, kl: Tensor, kl_coefficient: float, algorithm: AlgorithmConfig
) -> tuple[Tensor, Tensor]:
    rewards = sample_rewards(
        batch.rewards,
        kl,
        batch.lengths,
        batch.loss_mask,
        kl_coefficient=kl_coefficient,
        reward_clip=algorithm.reward_clip,
    )
    per_sample = group_advantages(
        rewards,
        batch.group_sizes,
        normalize_by_std=algorithm.normalize_by_std,
        std_epsilon=algorithm.group_std_epsilon,
    )
    advantages = spread_over_tokens(per_sample, batch.lengths, batch.loss_mask)
    return advantages, torch.zeros_like(advantages)


def _from_critic(
    batch: RolloutBatch, kl: Tensor, kl_coefficient: float, algorithm: AlgorithmConfig
) -> tuple[Tensor, Tensor]:
    rewards = token_rewards(
        batch.rewards,
        kl,
        batch.lengths,
        batch.loss_mask,
        kl_coefficient=kl_coefficient,
        reward_clip=algorithm.reward_clip,
    )
    return gae(
        rewards,
        batch.values.double(),
        batch.lengths,
        batch.loss_mask,
        gamma=algorithm.gamma,
        gae_lambda=algorithm.gae_lambda,
    )


_ESTIMATES: dict[str, _Estimate] = {"group": _from_group, "gae": _from_critic}


def estimate_advantages(
    batch: RolloutBatch, *, algorithm: AlgorithmConfig, kl_coefficient: float
) -> Advantages:
    """Advantages and returns of a whole batch, once, before it is split over ranks.

    The KL penalty enters the rewards when `algorithm.kl_placement` is "reward". The metrics
    describe advantages before whitening: afterwards mean and deviation are 0 and 1.
    """
    kl = torch.zeros_like(batch.old_logprobs)
    if algorithm.kl_placement == "reward" and kl_coefficient > 0:
        kl = token_kl(
            batch.old_logprobs,
            batch.reference_logprobs,
            batch.loss_mask,
            estimator=algorithm.kl_estimator,
        )
    advantages, returns = _ESTIMATES[algorithm.advantage](batch, kl, kl_coefficient, algorithm)
    metrics = _advantage_metrics(batch, advantages)
    if algorithm.advantage == "gae":
        metrics |= _value_metrics(batch, returns)
    if algorithm.whiten_advantages:
        advantages = whiten(advantages, batch.loss_mask)
    return Advantages(advantages=advantages.float(), returns=returns.float(), metrics=metrics)


def _advantage_metrics(batch: RolloutBatch, advantages: Tensor) -> dict[str, float]:
    tokens_per_group = sum_by_segment(
        batch.lengths.double(), batch.group_sizes, torch.ones_like(batch.lengths, dtype=torch.bool)
    ).long()
    signal = count_by_segment(batch.loss_mask & (advantages != 0), tokens_per_group)
    trained = advantages[batch.loss_mask]
    return {
        "advantages/mean": float(trained.mean()) if trained.numel() else 0.0,
        "advantages/std": float(trained.std()) if trained.numel() > 1 else 0.0,
        "advantages/zero_groups_fraction": float((signal == 0).double().mean()),
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
