"""A number for every predicted token, without gradient: log-probabilities or values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlhf_ray.kept_tokens import join_kept, whole_vocabulary
from rlhf_ray.records import RolloutGroup, TokenValues
from rlhf_ray.training.layout import MicroBatch
from rlhf_ray.training.ranks import reduce_over_ranks, training_device
from rlhf_ray.training.row_layout import RowLayout

# A micro-batch to one number per entry of its `targets` [M].
Predict = Callable[[MicroBatch], Tensor]


def score_groups(
    predict: Predict, groups: Sequence[RolloutGroup], *, layout: RowLayout
) -> list[TokenValues]:
    """Score the sampled tokens of this rank's groups.

    Every rank calls it, with groups of its own, also with none: a forward pass may be a
    collective operation, so that the ranks with fewer micro-batches run empty ones.
    """
    if groups:
        token_ids = torch.cat([group.token_ids for group in groups])
        lengths = torch.cat([group.lengths for group in groups])
        mask = torch.cat([group.loss_mask for group in groups])
        kept = join_kept([group.kept_token_ids for group in groups])
    else:
        token_ids = lengths = torch.zeros(0, dtype=torch.int64)
        mask = torch.zeros(0, dtype=torch.bool)
        kept = whole_vocabulary(0)
    values = score_tokens(predict, token_ids, lengths, mask, kept, layout=layout)
    parts = values.split([group.token_ids.shape[0] for group in groups]) if groups else ()
    return [
        # A clone: the part alone is sent to other processes, not the storage of them all.
        TokenValues(prompt_id=group.prompt.prompt_id, values=part.clone())
        for group, part in zip(groups, parts, strict=True)
    ]


@torch.no_grad()
def score_tokens(
    predict: Predict,
    token_ids: Tensor,
    lengths: Tensor,
    mask: Tensor,
    kept_token_ids: Tensor,
    *,
    layout: RowLayout,
) -> Tensor:
    """Score the masked tokens of ragged samples; every rank calls it.

    Args:
        token_ids [N] int64, lengths [S] int64, mask [N] bool, kept_token_ids [N, K] int32.

    Returns:
        [N] float32 on the CPU, 0.0 off the mask.
    """
    device = training_device()
    plan = layout.plan(token_ids, lengths, mask)
    most = int(reduce_over_ranks(torch.tensor([len(plan)], device=device), maximum=True))
    plan += [[] for _ in range(most - len(plan))]
    token_ids, lengths, mask = token_ids.to(device), lengths.to(device), mask.to(device)
    kept_token_ids = kept_token_ids.to(device)
    values = torch.zeros(token_ids.shape[0], dtype=torch.float32, device=device)
    for rows in plan:
        batch = layout.lay_out(token_ids, lengths, mask, kept_token_ids, rows)
        predicted = predict(batch)
        values[batch.token_index] = predicted[: batch.num_targets].float()
    return values.cpu()
