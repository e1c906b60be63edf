"""Builders of scored groups and of experience, for tests."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.config.groups.algorithm import AlgorithmConfig, OldLogprobsFrom
from rlhf_ray.experience.build import ExperienceBatch, build_experience
from rlhf_ray.records import Coefficients, Experience, Prompt, RolloutGroup, TokenValues

VOCABULARY = 11
ONE_RANK = RankPlan(num_ranks=1, max_tokens_per_micro_batch=10_000)
T, F = True, False


def make_group(
    index: int,
    masks: list[list[bool]],
    rewards: list[float],
    *,
    generator_logprobs: list[float] | None = None,
    token_ids: list[int] | None = None,
    support_token_ids: Tensor | None = None,
) -> RolloutGroup:
    """A group whose samples have these loss masks; numbers not given are made from `index`.

    Sampled from the whole vocabulary unless `support_token_ids` says otherwise.
    """
    mask = torch.tensor([keep for row in masks for keep in row], dtype=torch.bool)
    numbers = random.Random(index)
    if token_ids is None:
        token_ids = [numbers.randrange(VOCABULARY) for _ in range(mask.shape[0])]
    if generator_logprobs is None:
        generator_logprobs = [-3 * numbers.random() if keep else 0.0 for keep in mask.tolist()]
    return RolloutGroup(
        prompt=Prompt(
            prompt_id=f"prompt-{index}",
            stream_index=index,
            text="",
            token_ids=(0,),
            answer=None,
            source="test",
            seed=index,
            columns={},
        ),
        sample_indices=tuple(range(len(masks))),
        token_ids=torch.tensor(token_ids, dtype=torch.int64),
        lengths=torch.tensor([len(row) for row in masks], dtype=torch.int64),
        loss_mask=mask,
        generator_logprobs=torch.tensor(generator_logprobs, dtype=torch.float32),
        support_token_ids=support_token_ids,
        weight_versions=torch.where(mask, 0, -1),
        responses=("",) * len(masks),
        finish_reasons=("stop",) * len(masks),
        rewards=torch.tensor(rewards, dtype=torch.float64),
        reward_parts={"test": torch.tensor(rewards, dtype=torch.float64)},
        failures=(),
    )


def random_groups(seed: int, num_groups: int, samples_per_group: int) -> list[RolloutGroup]:
    """Groups of samples of 3 to 12 tokens: a prompt, then sampled tokens, some with holes."""
    numbers = random.Random(seed)
    groups = []
    for index in range(num_groups):
        prompt = [False] * numbers.randint(1, 3)
        masks = [
            prompt + [numbers.random() < 0.8 for _ in range(numbers.randint(2, 9))]
            for _ in range(samples_per_group)
        ]
        rewards = [round(numbers.uniform(-2, 2), 2) for _ in masks]
        groups.append(make_group(index, masks, rewards))
    return groups


def token_values(groups: list[RolloutGroup], seed: int, shift: float = 0.0) -> list[TokenValues]:
    """Made-up values on the sampled tokens of every group."""
    result = []
    for group in groups:
        generator = torch.Generator().manual_seed(1000 * seed + group.prompt.stream_index)
        noise = 0.3 * torch.randn(group.token_ids.shape[0], generator=generator)
        result.append(as_values(group, group.generator_logprobs + noise + shift))
    return result


def as_values(group: RolloutGroup, numbers: Tensor) -> TokenValues:
    kept = torch.where(group.loss_mask, numbers, 0.0)
    return TokenValues(prompt_id=group.prompt.prompt_id, values=kept)


def two_groups() -> list[RolloutGroup]:
    """Two samples of different length and reward; two of equal length and reward."""
    first = make_group(
        0,
        [[F, T, T], [F, T]],
        [1.0, 0.0],
        token_ids=[1, 2, 3, 1, 4],
        generator_logprobs=[0.0, -1.0, -2.0, 0.0, -0.5],
    )
    second = make_group(
        1,
        [[F, F, T], [F, F, T]],
        [0.85, 0.85],
        token_ids=[5, 6, 7, 5, 6, 8],
        generator_logprobs=[0.0, 0.0, -1.0, 0.0, 0.0, -1.0],
    )
    return [first, second]


def build(
    groups: list[RolloutGroup],
    algorithm: AlgorithmConfig | None = None,
    *,
    reference: list[TokenValues] | None = None,
    values: list[TokenValues] | None = None,
    old: list[TokenValues] | None = None,
    kl_coefficient: float = 0.0,
    coefficients: Coefficients | None = None,
    learner: RankPlan = ONE_RANK,
    critic: RankPlan | None = None,
    seed: int = 0,
    step: int = 0,
) -> ExperienceBatch:
    """`build_experience` with defaults: GRPO on one rank, no other role asked."""
    return build_experience(
        groups,
        reference=reference,
        values=values,
        old=old,
        old_logprobs_from=OldLogprobsFrom.LEARNER_IN_UPDATE
        if old is None
        else OldLogprobsFrom.LEARNER_BEFORE_UPDATE,
        algorithm=algorithm or AlgorithmConfig(),
        coefficients=coefficients or Coefficients(kl=kl_coefficient),
        learner=learner,
        critic=critic,
        seed=seed,
        step=step,
    )


def only(batch: ExperienceBatch) -> Experience:
    ((experience,),) = batch.learner
    return experience


def by_tokens(experience: Experience, field: str) -> dict[tuple[int, ...], list[float]]:
    """A per-token field of every sample, by the sample's token ids: free of order and split."""
    lengths = experience.lengths.tolist()
    ids = experience.token_ids.split(lengths)
    pieces = getattr(experience, field).split(lengths)
    return {tuple(i.tolist()): p.tolist() for i, p in zip(ids, pieces, strict=True)}
