"""Rewards of the bandit, for whole answers or for steps. See `bandit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.records import GroupSteps, RolloutGroup
from rlhf_ray.testing.bandit_workers import FIRST_PROMPT_TOKEN, RIGHT
from rlhf_ray.testing.fakes import done

# Added to all rewards: only a baseline that fits takes it away.
OFFSET = 5.0


class BanditRewards:
    """Half a point for the right token at the first and at the second place, over an offset.

    Args:
        by_step: the answer has a step for each of the two places, or only the first step if it
            ends early. The offset is added to each step.
    """

    names = (MemberName(role="reward", rank=0),)

    def __init__(self, *, by_step: bool) -> None:
        self._by_step = by_step

    def score(self, worker: int, parts: Sequence[RolloutGroup]) -> Call:
        (group,) = parts
        right = RIGHT[group.prompt.token_ids[0] - FIRST_PROMPT_TOKEN]
        points = [
            [0.5 * (tokens[1] == right[0]), 0.5 * (tokens[3:4] == [right[1]])]
            for tokens in (part.tolist() for part in group.token_ids.split(group.lengths.tolist()))
        ]
        rewards = [OFFSET + sum(row) for row in points]
        if self._by_step:
            group = _with_steps(group, points)
            rewards = [sum(steps) for steps in group.rewards_of_steps()]
        scored = torch.tensor(rewards, dtype=torch.float64)
        group = dataclasses.replace(group, rewards=scored, reward_parts={"bandit": scored})
        return done("reward", worker, signal=group.summary(), payload=group)


def _with_steps(group: RolloutGroup, points: list[list[float]]) -> RolloutGroup:
    """Split answers into a first step of one sampled token and a second step of the rest."""
    rewards = torch.zeros(group.token_ids.shape[0], dtype=torch.float64)
    start = 0
    for length, (first, second) in zip(group.lengths.tolist(), points, strict=True):
        rewards[start + 1] = OFFSET + first
        if length > 2:
            rewards[start + length - 1] = OFFSET + second
        start += length
    return dataclasses.replace(
        group,
        steps=GroupSteps(text_ends=rewards.int() * 0, rewards=rewards, ends=rewards != 0),
    )
