"""Scores of every predicted token without gradient: log-probabilities or values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlhf_ray.batching.layout import MicroBatch
from rlhf_ray.batching.row_layout import RowLayout
from rlhf_ray.records import RolloutGroup, TokenValues
from rlhf_ray.records.support import NO_TOKEN, join_supports
from rlhf_ray.training.engine.ranks import largest_over_ranks, training_device
from rlhf_ray.training.forward.token_logprobs import of_targets

# Maps a micro-batch to a number per entry of its `targets` [M], or to a row of numbers [M, K].
Predict = Callable[[MicroBatch], Tensor]


def score_groups(
    predict: Predict, groups: Sequence[RolloutGroup], *, layout: RowLayout
) -> list[TokenValues]:
    """Score the sampled tokens of this rank's groups.

    All ranks call it, each with its own groups, even a rank without groups. A forward pass may be a
    collective operation, so ranks with fewer micro-batches run empty ones. Of ranks that compute
    samples together, which have the same groups, only the first returns the scores.
    """
    samples = _joined(groups)
    values = score_tokens(predict, *samples, layout=layout)
    if not layout.is_first:
        return []
    return [
        # A clone: pickling a view would send the storage of all groups to another process.
        TokenValues(prompt_id=group.prompt.prompt_id, values=part.clone())
        for group, part in zip(groups, _by_group(values, groups), strict=True)
    ]


def score_distributions(
    predict: Predict, groups: Sequence[RolloutGroup], *, layout: RowLayout
) -> list[TokenValues]:
    """Like `score_groups`, and also over the support of the sampling distribution.

    Args:
        predict: gives rows [M, K], one number per token of the support.
    """
    samples = _joined(groups)
    token_ids, _, mask, support = samples
    rows = score_tokens(predict, *samples, layout=layout)
    if not groups or not layout.is_first:
        return []
    rows = torch.where(mask[:, None], rows, float("-inf"))
    sampled = torch.where(mask, of_targets(rows, token_ids, support), 0.0)
    return [
        TokenValues(
            prompt_id=group.prompt.prompt_id, values=values.clone(), support_logprobs=over.clone()
        )
        for group, values, over in zip(
            groups, _by_group(sampled, groups), _by_group(rows, groups), strict=True
        )
    ]


def _joined(groups: Sequence[RolloutGroup]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Join token ids, lengths, masks and supports of all groups for `score_tokens`."""
    if not groups:
        none = torch.zeros(0, dtype=torch.int64)
        return none, none, torch.zeros(0, dtype=torch.bool), None
    return (
        torch.cat([group.token_ids for group in groups]),
        torch.cat([group.lengths for group in groups]),
        torch.cat([group.loss_mask for group in groups]),
        join_supports(
            [group.support_token_ids for group in groups],
            [group.token_ids.shape[0] for group in groups],
        ),
    )


def _by_group(values: Tensor, groups: Sequence[RolloutGroup]) -> tuple[Tensor, ...]:
    return values.split([group.token_ids.shape[0] for group in groups]) if groups else ()


def score_states(
    predict: Predict, groups: Sequence[RolloutGroup], *, layout: RowLayout
) -> list[TokenValues]:
    """Like `score_groups`, with the value of the state after each truncated answer.

    This state is scored as if one more token had been sampled. Any token will do, because the value
    depends only on the tokens before it.
    """
    longer = replace(layout, max_tokens=layout.max_tokens + 1)
    scored = score_groups(predict, [_with_one_more(group) for group in groups], layout=longer)
    if not layout.is_first:
        return []
    return [_split_off(group, values) for group, values in zip(groups, scored, strict=True)]


def _with_one_more(group: RolloutGroup) -> RolloutGroup:
    """Append a placeholder token to every truncated answer of a group."""
    cut = _is_cut_off(group)
    places = group.lengths.cumsum(0)[cut]
    support = group.support_token_ids
    parts = {
        name: _insert(getattr(group, name), places, made_up)
        for name, made_up in (
            ("token_ids", 0),
            ("loss_mask", True),
            ("generator_logprobs", 0.0),
            ("weight_versions", 0),
        )
    }
    return replace(
        group,
        **parts,
        lengths=group.lengths + cut.long(),
        support_token_ids=None if support is None else _insert(support, places, NO_TOKEN),
        # Of no use to a value, and without an entry for the made-up tokens.
        steps=None,
    )


def _split_off(group: RolloutGroup, scored: TokenValues) -> TokenValues:
    cut = _is_cut_off(group)
    last = ((group.lengths + cut.long()).cumsum(0) - 1)[cut]
    is_own = torch.ones(scored.values.shape[0], dtype=torch.bool)
    is_own[last] = False
    final_values = torch.zeros(group.num_samples)
    final_values[cut] = scored.values[last]
    return TokenValues(
        prompt_id=scored.prompt_id, values=scored.values[is_own], final_values=final_values
    )


def _is_cut_off(group: RolloutGroup) -> Tensor:
    return torch.tensor([reason == "length" for reason in group.finish_reasons], dtype=torch.bool)


def _insert(values: Tensor, places: Tensor, made_up: float) -> Tensor:
    """Insert `made_up` into values [N, ...] before each of the places [P]; N is the end."""
    parts = values.tensor_split(places.tolist())
    extra = values.new_full((1, *values.shape[1:]), made_up)
    joined = [piece for part in parts[:-1] for piece in (part, extra)]
    return torch.cat([*joined, parts[-1]])


@torch.no_grad()
def score_tokens(
    predict: Predict,
    token_ids: Tensor,
    lengths: Tensor,
    mask: Tensor,
    support_token_ids: Tensor | None,
    *,
    layout: RowLayout,
) -> Tensor:
    """Score the masked tokens of ragged samples; all ranks call it.

    Args:
        token_ids [N] int64, lengths [S] int64, mask [N] bool, support_token_ids
            [N, K] int32, or None for the whole vocabulary.

    Returns:
        [N] float32 on the CPU, 0.0 off the mask; [N, K] if `predict` gives rows.
    """
    device = training_device()
    plan = layout.plan(token_ids, lengths, mask)
    # Under ZeRO-3 every forward pass gathers weights from all ranks: ranks with fewer micro-batches
    # run empty ones, or the others would wait for them.
    most = largest_over_ranks(len(plan), device)
    plan += [[] for _ in range(most - len(plan))]
    token_ids, lengths, mask = token_ids.to(device), lengths.to(device), mask.to(device)
    if support_token_ids is not None:
        support_token_ids = support_token_ids.to(device)
    values = torch.zeros(0, device=device)
    for number, rows in enumerate(plan):
        batch = layout.lay_out(token_ids, lengths, mask, support_token_ids, rows)
        predicted = predict(batch)
        if number == 0:
            shape = (token_ids.shape[0], *predicted.shape[1:])
            values = torch.zeros(shape, dtype=torch.float32, device=device)
        values[batch.token_index] = predicted[: batch.num_targets].float()
    return values.cpu()
