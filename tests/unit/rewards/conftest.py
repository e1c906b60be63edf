"""Fixtures: unscored groups, and workers that are closed after the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_ray.config.groups.reward import RewardConfig
from rlhf_ray.records import GroupSteps, Prompt, RolloutGroup
from rlhf_ray.records.support import join_supports
from rlhf_ray.rewards.worker import RewardWorker

USER_REWARDS = Path(__file__).parent / "user_rewards.py"

MakeGroup = Callable[..., RolloutGroup]
MakeWorker = Callable[..., RewardWorker]


def build_group(
    *responses: str, indices: tuple[int, ...] | None = None, prompt_id: str = "e0-r1"
) -> RolloutGroup:
    """A group of samples with 2 prompt tokens and one token per character of the response.

    The tokens of sample i are 100 * i, 100 * i + 1, and so on: they tell where they came from.
    """
    if indices is None:
        indices = tuple(range(len(responses)))
    lengths = [2 + len(response) for response in responses]
    tokens = [100 * i + t for i, n in zip(indices, lengths, strict=True) for t in range(n)]
    mask = torch.tensor([t >= 2 for n in lengths for t in range(n)], dtype=torch.bool)
    token_ids = torch.tensor(tokens, dtype=torch.int64)
    return RolloutGroup(
        prompt=Prompt(
            prompt_id=prompt_id,
            stream_index=1,
            text="What is 6 times 7?",
            token_ids=(1, 2),
            answer="42",
            source="sums",
            seed=5,
            columns={"level": 3},
        ),
        sample_indices=indices,
        token_ids=token_ids,
        lengths=torch.tensor(lengths, dtype=torch.int64),
        loss_mask=mask,
        generator_logprobs=torch.where(mask, -0.001 * token_ids, 0.0).float(),
        support_token_ids=join_supports(list(map(support_of_sample, indices, lengths)), lengths),
        weight_versions=torch.where(mask, token_ids + 7, -1),
        responses=responses,
        finish_reasons=tuple("length" if index % 2 else "stop" for index in indices),
        rewards=torch.zeros(0, dtype=torch.float64),
        reward_parts={},
        failures=(),
    )


def build_step_group(*responses: str, indices: tuple[int, ...] | None = None) -> RolloutGroup:
    """Make a group as `build_group` does, with a last token that adds no character."""
    group = build_group(*(f"{response}." for response in responses), indices=indices)
    ends = [e for r in responses for e in (0, 0, *range(1, len(r) + 1), len(r))]
    return replace(group, responses=responses, steps=unscored_steps(ends))


def unscored_steps(text_ends: list[int]) -> GroupSteps:
    return GroupSteps(
        text_ends=torch.tensor(text_ends, dtype=torch.int32),
        rewards=torch.zeros(len(text_ends), dtype=torch.float64),
        ends=torch.zeros(len(text_ends), dtype=torch.bool),
    )


def support_of_sample(index: int, length: int) -> Tensor:
    """As many tokens as the response is long, so that parts of a group differ in width."""
    tokens = 100 * index + torch.arange(length, dtype=torch.int32)
    kept = tokens[:, None].repeat(1, min(length - 2, 9))
    kept[:2] = -1
    return kept


@pytest.fixture
def make_group() -> MakeGroup:
    return build_group


@pytest.fixture
def make_worker() -> Iterator[MakeWorker]:
    workers: list[RewardWorker] = []

    def make(*functions: Any, **settings: Any) -> RewardWorker:
        worker = RewardWorker(RewardConfig(functions=list(functions), **settings))
        workers.append(worker)
        worker.start()
        return worker

    yield make
    for worker in workers:
        worker.close()


@pytest.fixture
def user_rewards() -> str:
    """Path of the file with a user's functions."""
    return str(USER_REWARDS)
