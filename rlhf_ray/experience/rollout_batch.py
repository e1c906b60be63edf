"""One batch of scored groups as flat tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_ray.records import RolloutGroup, TokenValues
from rlhf_ray.records.kept_tokens import join_kept


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutBatch:
    """All samples of one step, in the order of the prompt stream.

    Attributes:
        token_ids [N] int64, lengths [S] int64, loss_mask [N] bool: ragged samples.
        trained [S] bool: False on greedy answers, which are a baseline only.
        group_sizes [G] int64: samples per group, none of them 0.
        tasks [S]: name of each sample's task.
        rewards [S] float64: as scored, not clipped.
        step_rewards [N] float64, step_ends [N] bool: as in `RolloutGroup`; 0.0 and False everywhere
            in a run that does not train on steps.
        generator_logprobs [N], old_logprobs [N]: 0.0 off the mask; the old ones are the
            generator's where the learner computed none.
        kept_token_ids [N, K] int32: as in `RolloutGroup`.
        reference_logprobs [N]: 0.0 off the mask, and everywhere without a reference.
        reference_kept_logprobs [N, K]: of all kept tokens, -inf where there is none; [N, 0] where
            the reference was not asked for them.
        values [N]: the critic's, 0.0 off the mask, and everywhere without a critic.
        after [S]: its value after each answer; 0.0 where that is over, or nobody asked.
    """

    token_ids: Tensor
    lengths: Tensor
    loss_mask: Tensor
    trained: Tensor
    group_sizes: Tensor
    tasks: tuple[str, ...]
    rewards: Tensor
    step_rewards: Tensor
    step_ends: Tensor
    generator_logprobs: Tensor
    kept_token_ids: Tensor
    old_logprobs: Tensor
    reference_logprobs: Tensor
    reference_kept_logprobs: Tensor
    values: Tensor
    after: Tensor


def flatten_groups(
    groups: Sequence[RolloutGroup],
    num_greedy: int,
    reference: Sequence[TokenValues] | None,
    values: Sequence[TokenValues] | None,
    old: Sequence[TokenValues] | None,
) -> RolloutBatch:
    """Groups in any order, and what the roles computed for them, as one flat batch.

    A group without a sample (all of them failed) has nothing to train on and is left out.

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
    step_rewards, step_ends = _steps(ordered)
    kept = join_kept([group.kept_token_ids for group in ordered])
    return RolloutBatch(
        token_ids=torch.cat([group.token_ids for group in ordered]),
        lengths=lengths,
        loss_mask=mask,
        trained=trained,
        group_sizes=torch.tensor([group.num_samples for group in ordered]),
        tasks=tuple(group.prompt.source for group in ordered for _ in range(group.num_samples)),
        rewards=rewards,
        step_rewards=step_rewards,
        step_ends=step_ends,
        generator_logprobs=generator,
        kept_token_ids=kept,
        old_logprobs=generator if old is None else joined("learner", old),
        reference_logprobs=unused if reference is None else joined("reference", reference),
        reference_kept_logprobs=_kept_logprobs(ordered, reference or [], width=kept.shape[1]),
        values=unused if values is None else joined("critic", values),
        after=_after(ordered, values or []),
    )


def _in_order(groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    ordered = sorted(
        (group for group in groups if group.num_samples), key=lambda g: g.prompt.stream_index
    )
    assert ordered, "no group has a sample"
    for group in ordered:
        assert group.is_scored, f"the group of prompt {group.prompt.prompt_id} is not scored"
    return ordered


def _steps(groups: Sequence[RolloutGroup]) -> tuple[Tensor, Tensor]:
    have = [group.has_steps for group in groups]
    assert all(have) or not any(have), "some groups have rewards of steps, and some have not"
    if not all(have):
        num_tokens = sum(group.token_ids.shape[0] for group in groups)
        return torch.zeros(num_tokens, dtype=torch.float64), torch.zeros(num_tokens) > 0
    rewards = torch.cat([group.step_rewards for group in groups])
    assert bool(torch.isfinite(rewards).all()), "the reward of a step is not finite"
    return rewards, torch.cat([group.step_ends for group in groups])


def _kept_logprobs(
    groups: Sequence[RolloutGroup], reference: Sequence[TokenValues], *, width: int
) -> Tensor:
    """Rows [N, width] beside those of the kept tokens; [N, 0] where nobody asked for them."""
    by_prompt = {item.prompt_id: item.kept_logprobs for item in reference}
    if not any(part.numel() for part in by_prompt.values()):
        return torch.zeros(sum(group.token_ids.shape[0] for group in groups), 0)
    # A rank of the reference has joined other groups, which may be wider.
    parts = [by_prompt[group.prompt.prompt_id][:, :width] for group in groups]
    return torch.cat([pad(part, (0, width - part.shape[1]), value=-math.inf) for part in parts])


def _after(groups: Sequence[RolloutGroup], values: Sequence[TokenValues]) -> Tensor:
    by_prompt = {item.prompt_id: item.after for item in values}
    parts = [by_prompt.get(group.prompt.prompt_id, torch.zeros(0)) for group in groups]
    return torch.cat(
        [
            part if part.numel() else torch.zeros(group.num_samples)
            for group, part in zip(groups, parts, strict=True)
        ]
    )
