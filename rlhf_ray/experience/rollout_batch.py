"""One batch of scored groups as flat tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_ray.records import RolloutGroup, TokenValues
from rlhf_ray.records.support import join_supports


class BatchSteps(NamedTuple):
    """Rewards [N] float64 and ends [N] bool of the steps of a batch; see `records.GroupSteps`."""

    rewards: Tensor
    ends: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutBatch:
    """All samples of one step, in the order of the prompt stream.

    Attributes:
        token_ids [N] int64, lengths [S] int64, loss_mask [N] bool: ragged samples.
        trained [S] bool: False on greedy answers, which are a baseline only.
        group_sizes [G] int64: samples per group, none of them 0.
        tasks [S]: name of each sample's task.
        rewards [S] float64: as scored, not clipped.
        steps: rewards [N] and ends [N] of steps; None in a run that does not train on them.
        generator_logprobs [N], old_logprobs [N]: 0.0 off the mask; the old ones are the
            generator's if the learner computed none.
        support_token_ids [N, K] int32: as in `RolloutGroup`; None for the whole vocabulary.
        reference_logprobs [N]: 0.0 off the mask, and everywhere without a reference.
        reference_support_logprobs [N, K]: log-probabilities under the reference over the support,
            -inf on filled up entries; None unless the KL of whole distributions is on.
        values [N]: the critic's, 0.0 off the mask, and everywhere without a critic.
        final_values [S]: the critic's value after each answer; 0.0 if the answer ended, or if
            bootstrapping is off.
    """

    token_ids: Tensor
    lengths: Tensor
    loss_mask: Tensor
    trained: Tensor
    group_sizes: Tensor
    tasks: tuple[str, ...]
    rewards: Tensor
    steps: BatchSteps | None
    generator_logprobs: Tensor
    support_token_ids: Tensor | None
    old_logprobs: Tensor
    reference_logprobs: Tensor
    reference_support_logprobs: Tensor | None
    values: Tensor
    final_values: Tensor


def flatten_groups(
    groups: Sequence[RolloutGroup],
    num_greedy: int,
    reference: Sequence[TokenValues] | None,
    values: Sequence[TokenValues] | None,
    old: Sequence[TokenValues] | None,
) -> RolloutBatch:
    """Concatenate groups, given in any order, and the results of the roles to one flat batch.

    A group without a sample (all of them failed) is left out.

    Args:
        num_greedy: samples at the end of every group that are greedy answers.
    """
    ordered = _in_order(groups)
    trained = torch.tensor(
        [i < group.num_samples - num_greedy for group in ordered for i in range(group.num_samples)]
    )
    lengths = torch.cat([group.lengths for group in ordered])
    mask = torch.cat([group.loss_mask for group in ordered])
    mask = mask & torch.repeat_interleave(trained, lengths)
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
    sizes = [group.token_ids.shape[0] for group in ordered]
    support = join_supports([group.support_token_ids for group in ordered], sizes)
    return RolloutBatch(
        token_ids=torch.cat([group.token_ids for group in ordered]),
        lengths=lengths,
        loss_mask=mask,
        trained=trained,
        group_sizes=torch.tensor([group.num_samples for group in ordered]),
        tasks=tuple(group.prompt.source for group in ordered for _ in range(group.num_samples)),
        rewards=rewards,
        steps=_steps(ordered),
        generator_logprobs=generator,
        support_token_ids=support,
        old_logprobs=generator if old is None else joined("learner", old),
        reference_logprobs=unused if reference is None else joined("reference", reference),
        reference_support_logprobs=_support_logprobs(ordered, reference or [], support),
        values=unused if values is None else joined("critic", values),
        final_values=_final_values(ordered, values or []),
    )


def by_prompt(groups: Sequence[RolloutGroup], values: Tensor) -> dict[str, Tensor]:
    """Views of values [N] of a flat batch for each group that it was made of, by prompt id."""
    ordered = _in_order(groups)
    parts = values.split([group.token_ids.shape[0] for group in ordered])
    return {g.prompt.prompt_id: part for g, part in zip(ordered, parts, strict=True)}


def _in_order(groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    ordered = sorted(
        (group for group in groups if group.num_samples), key=lambda g: g.prompt.stream_index
    )
    assert ordered, "no group has a sample"
    for group in ordered:
        assert group.is_scored, f"the group of prompt {group.prompt.prompt_id} is not scored"
    return ordered


def _steps(groups: Sequence[RolloutGroup]) -> BatchSteps | None:
    steps = [group.steps for group in groups if group.steps is not None]
    assert len(steps) in (0, len(groups)), "some groups have rewards of steps, and some have not"
    if not steps:
        return None
    rewards = torch.cat([part.rewards for part in steps])
    assert bool(torch.isfinite(rewards).all()), "the reward of a step is not finite"
    return BatchSteps(rewards, torch.cat([part.ends for part in steps]))


def _support_logprobs(
    groups: Sequence[RolloutGroup], reference: Sequence[TokenValues], support: Tensor | None
) -> Tensor | None:
    """The reference's log-probabilities [N, K] over the support [N, K]; None if not asked for."""
    by_prompt = {item.prompt_id: item.support_logprobs for item in reference}
    found = [by_prompt.get(group.prompt.prompt_id) for group in groups]
    parts = [part for part in found if part is not None]
    if not parts:
        return None
    assert len(parts) == len(groups), "some groups have no log-probabilities over their support"
    assert support is not None, "log-probabilities over the support, and no support"
    width = support.shape[1]
    # Every rank of the reference fills up to the widest of its own groups: cut or fill up to the
    # width of this batch.
    rows = [pad(p[:, :width], (0, max(0, width - p.shape[1])), value=-math.inf) for p in parts]
    return torch.cat(rows)


def _final_values(groups: Sequence[RolloutGroup], values: Sequence[TokenValues]) -> Tensor:
    by_prompt = {item.prompt_id: item.final_values for item in values}
    parts = [by_prompt.get(group.prompt.prompt_id) for group in groups]
    return torch.cat(
        [
            torch.zeros(group.num_samples) if part is None else part
            for group, part in zip(groups, parts, strict=True)
        ]
    )
