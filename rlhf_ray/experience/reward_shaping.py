"""Reward shaping and masking before the advantages, and task weights after them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf_ray.algorithms.ragged import (
    count_by_segment,
    last_masked_tokens,
    spread_over_tokens,
)
from rlhf_ray.algorithms.rewards.overlong import overlong_penalties, without_truncated
from rlhf_ray.algorithms.rewards.task_rewards import RewardScale, normalize_rewards
from rlhf_ray.algorithms.rewards.task_weights import weigh_advantages
from rlhf_ray.experience.advantages import Advantages
from rlhf_ray.experience.rollout_batch import RolloutBatch
from rlhf_ray.records import RolloutGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardShaping:
    """The keys of the same names in `config.groups.rollout_selection`; the defaults change nothing.

    Attributes:
        max_response_tokens: tokens after which a response is cut off.
    """

    max_response_tokens: int = 0
    overlong_buffer_tokens: int = 0
    overlong_penalty: float = 0.0
    overlong_filter: bool = False
    task_weights: Mapping[str, float] = field(default_factory=dict)


NO_SHAPING = RewardShaping()


def shape_rewards(
    groups: Sequence[RolloutGroup],
    shaping: RewardShaping,
    scales: Mapping[str, RewardScale] | None = None,
) -> tuple[list[RolloutGroup], dict[str, float]]:
    """Normalise rewards by task, penalise over-long responses and mask truncated ones.

    The groups that come in are not changed: logs and replay have the rewards as scored.

    Returns:
        the groups, and metrics of the changes; no metrics if nothing is configured.
    """
    # Normalised first, so that the penalty is in one unit for all tasks.
    shaped, metrics = _scaled(groups, scales or {})
    if shaping.overlong_buffer_tokens:
        penalties = [_penalties(group, shaping) for group in shaped]
        shaped = [
            _punished(group, penalty) for group, penalty in zip(shaped, penalties, strict=True)
        ]
        metrics["rollout_selection/overlong_penalty_mean"] = _mean(penalties)
    if shaping.overlong_filter:
        truncated = [_truncated(group) for group in shaped]
        shaped = [
            dataclasses.replace(
                group, loss_mask=without_truncated(group.loss_mask, group.lengths, cut)
            )
            for group, cut in zip(shaped, truncated, strict=True)
        ]
        metrics["rollout_selection/overlong_filtered_fraction"] = _mean(truncated)
    return shaped, metrics


def weigh_tasks(estimated: Advantages, batch: RolloutBatch, shaping: RewardShaping) -> Advantages:
    """Multiply advantages by the weight of their sample's task; returns and metrics stay."""
    if not shaping.task_weights:
        return estimated
    weights = torch.tensor([shaping.task_weights.get(task, 1.0) for task in batch.tasks])
    advantages = weigh_advantages(estimated.advantages, weights, batch.lengths, batch.loss_mask)
    return dataclasses.replace(estimated, advantages=advantages)


def _scaled(
    groups: Sequence[RolloutGroup], scales: Mapping[str, RewardScale]
) -> tuple[list[RolloutGroup], dict[str, float]]:
    """Rewards on the scale of their task, or as scored without scales; and their metrics."""
    if not scales:
        return list(groups), {}
    scaled = [
        dataclasses.replace(
            group,
            rewards=normalize_rewards(
                group.rewards, (group.prompt.source,) * group.num_samples, scales
            ),
        )
        for group in groups
    ]
    metrics: dict[str, float] = {}
    for task in sorted({group.prompt.source for group in scaled}):
        rewards = torch.cat([g.rewards for g in scaled if g.prompt.source == task])
        metrics[f"reward/normalized_mean/{task}"] = _mean([rewards])
        deviation = float(rewards.std()) if rewards.numel() > 1 else 0.0
        metrics[f"reward/normalized_std/{task}"] = deviation
    return scaled, metrics


def _penalties(group: RolloutGroup, shaping: RewardShaping) -> Tensor:
    return overlong_penalties(
        count_by_segment(group.loss_mask, group.lengths),
        max_tokens=shaping.max_response_tokens,
        buffer_tokens=shaping.overlong_buffer_tokens,
        penalty=shaping.overlong_penalty,
    )


def _punished(group: RolloutGroup, penalty: Tensor) -> RolloutGroup:
    """Subtract the penalty [G] from every reward.

    In a run that trains on steps, a penalty above 0 is one more step that ends with the last token.
    """
    rewards = group.rewards.double() - penalty
    steps = group.steps
    if steps is None:
        return dataclasses.replace(group, rewards=rewards)
    per_token = spread_over_tokens(
        penalty, group.lengths, last_masked_tokens(group.lengths, group.loss_mask)
    )
    steps = dataclasses.replace(
        steps, rewards=steps.rewards - per_token, ends=steps.ends | (per_token != 0)
    )
    return dataclasses.replace(group, rewards=rewards, steps=steps)


def _truncated(group: RolloutGroup) -> Tensor:
    return torch.tensor([reason == "length" for reason in group.finish_reasons], dtype=torch.bool)


def _mean(parts: Sequence[Tensor]) -> float:
    values = torch.cat([part.double() for part in parts])
    return float(values.mean()) if values.numel() else 0.0
