"""Scorers: parts of the reward that are computed for a whole group, after the reward functions.

A reward worker merges the parts of a group and runs the functions; then the group goes from one
scorer to the next. Each scorer is a plain class that follows `GroupScorer` or `AsyncGroupScorer`,
in an actor of its kind (`cluster/roles/rewards.py`). The way from its outcomes to rewards and
failures is the same for all, and is in this file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from rlhf_ray.config.groups.reward import ScorerPart
from rlhf_ray.records import FailureKind, GroupSteps, GroupSummary, RolloutGroup, SampleFailure
from rlhf_ray.rewards.answers import fits_float32
from rlhf_ray.rewards.merge import drop_failed
from rlhf_ray.rewards.outcomes import ItemFailure, Outcome


class GroupScorer(Protocol):
    """Scorer that computes, one group at a time: a reward model.

    Its `score` is no coroutine: ranks that share a model must score all groups in the same order.
    """

    @property
    def part(self) -> ScorerPart:
        """Name and weight of the part."""
        ...

    def score(self, group: RolloutGroup) -> Sequence[Outcome]:
        """Score every sample; returns an outcome for each, in order.

        A problem with a sample is its `ItemFailure`. A problem with the scorer itself is raised,
        and ends the run.

        Args:
            group: merged and scored by the functions; it has at least one sample.
        """
        ...

    def close(self) -> None:
        """Free what the scorer holds."""
        ...


class AsyncGroupScorer(Protocol):
    """Scorer that waits for a service or an engine: it scores several groups at a time."""

    @property
    def part(self) -> ScorerPart:
        """Name and weight of the part."""
        ...

    async def score(self, group: RolloutGroup) -> Sequence[Outcome]:
        """See `GroupScorer.score`."""
        ...

    async def close(self) -> None:
        """See `GroupScorer.close`."""
        ...


def scored_by(scorer: GroupScorer, group: RolloutGroup) -> tuple[RolloutGroup, GroupSummary]:
    """Add the scorer's part to a group; returns the group and its summary.

    A group with a failure is not scored: it will be dropped as a whole.
    """
    if _is_asked_about(group):
        group = with_part(group, scorer.part, scorer.score(group))
    return group, group.summary()


async def scored_by_async(
    scorer: AsyncGroupScorer, group: RolloutGroup
) -> tuple[RolloutGroup, GroupSummary]:
    """Add an asynchronous scorer's part to a group; see `scored_by`."""
    if _is_asked_about(group):
        group = with_part(group, scorer.part, await scorer.score(group))
    return group, group.summary()


def _is_asked_about(group: RolloutGroup) -> bool:
    return not group.failures and group.num_samples > 0


def with_part(group: RolloutGroup, part: ScorerPart, outcomes: Sequence[Outcome]) -> RolloutGroup:
    """Add one part to the group's rewards, and drop the samples for which it has no value.

    In a run that trains on steps the part is one step, which ends with the last sampled token.

    Args:
        group: scored group; its rewards are the sum of the parts so far.
        outcomes: one per sample.
    """
    assert len(outcomes) == group.num_samples, f"{len(outcomes)} outcomes of {group.num_samples}"
    assert part.name not in group.reward_parts, f"there is a part {part.name!r} already"
    checked = [
        _checked(part, reward, outcome)
        for reward, outcome in zip(group.rewards.tolist(), outcomes, strict=True)
    ]
    failures = [
        SampleFailure(
            prompt_id=group.prompt.prompt_id,
            sample_index=index,
            kind=outcome.kind,
            message=f"reward {part.name!r}: {outcome.message}",
        )
        for index, outcome in zip(group.sample_indices, checked, strict=True)
        if isinstance(outcome, ItemFailure)
    ]
    group = drop_failed(group, failures)
    values = torch.tensor([o for o in checked if isinstance(o, float)], dtype=torch.float64)
    group = replace(
        group,
        rewards=group.rewards + part.weight * values,
        reward_parts={**group.reward_parts, part.name: values},
    )
    if group.steps is None or not part.weight:
        return group
    steps = _with_last_step(group.steps, group, part.weight * values)
    return replace(group, steps=steps)


def _checked(part: ScorerPart, reward: float, outcome: Outcome) -> Outcome:
    """The outcome, or a failure if the score or the whole reward with it is not finite."""
    if isinstance(outcome, ItemFailure):
        return outcome
    if not math.isfinite(outcome):
        message = f"the score is {outcome}, not a finite number"
    elif not fits_float32(total := reward + part.weight * outcome):
        message = (
            f"with the score {outcome} the weighted sum of the parts is {total}, not a finite "
            "number of float32"
        )
    else:
        return float(outcome)
    return ItemFailure(kind=FailureKind.REWARD_NOT_FINITE, message=message)


def _with_last_step(steps: GroupSteps, group: RolloutGroup, values: Tensor) -> GroupSteps:
    """Add one value per sample to the step that ends with the sample's last sampled token."""
    rewards, ends = steps.rewards.clone(), steps.ends.clone()
    start = 0
    for length, value in zip(group.lengths.tolist(), values, strict=True):
        sampled = group.loss_mask[start : start + length].nonzero()[:, 0] + start
        start += length
        if sampled.numel():  # Without a sampled token there is no place for the reward.
            rewards[sampled[-1]] += value
            ends[sampled[-1]] = True
    return replace(steps, rewards=rewards, ends=ends)
