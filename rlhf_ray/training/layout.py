"""Ragged samples laid out for one forward pass.

The decoder sees rows padded on the right to the width that this micro-batch needs. A causal
decoder never looks to the right, so no attention mask is needed: the padding cannot reach a token
that counts. Everything after the decoder works on the predicted tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.kept_tokens import NO_TOKEN


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """What one forward pass consumes; M predicted tokens.

    Attributes:
        input_ids [B, T] int64: padded with 0 on the right; up to the last token that a
            prediction needs, which is the one before the last predicted token.
        hidden_index [M] int64: where in the flattened [B * T] the token before each predicted
            one is: its hidden state predicts it.
        targets [M] int64: the predicted tokens.
        kept_token_ids [M, K] int32: for each of them the tokens that could have been sampled, -1
            where there is no more; K = 0 for the whole vocabulary.
        token_index [M] int64: where they are among the ragged [N] tokens.
        num_targets: M, or 0 where nothing is predicted. Then there is one meaningless entry in
            `hidden_index`, `targets` and `kept_token_ids`, so that the model still runs: every
            forward and backward pass is a collective operation.
    """

    input_ids: Tensor
    hidden_index: Tensor
    targets: Tensor
    kept_token_ids: Tensor
    token_index: Tensor
    num_targets: int


def lay_out(
    token_ids: Tensor,
    lengths: Tensor,
    loss_mask: Tensor,
    kept_token_ids: Tensor,
    rows: Sequence[int],
) -> MicroBatch:
    """Lay out the samples `rows` of ragged data.

    Args:
        token_ids [N] int64, lengths [S] int64, loss_mask [N] bool (True on predicted tokens),
            kept_token_ids [N, K] int32.
        rows: samples of this micro-batch; may be empty.

    Raises:
        ValueError: the first token of a sample is in the mask: nothing precedes it.
    """
    device = token_ids.device
    chosen = torch.tensor(list(rows), dtype=torch.int64, device=device)
    row_lengths = lengths[chosen]
    starts = (lengths.cumsum(0) - lengths)[chosen]
    longest = int(row_lengths.max()) if len(rows) else 0
    columns = torch.arange(longest, device=device)
    inside = columns < row_lengths[:, None]
    source = torch.where(inside, starts[:, None] + columns, 0)
    predicted = inside & loss_mask[source] if len(rows) else inside
    row, column = predicted.nonzero(as_tuple=True)
    if row.numel() == 0:
        zero = torch.zeros(1, dtype=torch.int64, device=device)
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        return MicroBatch(
            input_ids=zero[None],
            hidden_index=zero,
            targets=zero,
            kept_token_ids=_kept_of_nothing(kept_token_ids),
            token_index=nothing,
            num_targets=0,
        )
    if int(column.min()) == 0:
        first = rows[int(row[column == 0][0])]
        raise ValueError(
            f"the first token of sample {first} is marked as sampled, but nothing precedes it: "
            f"a prompt has at least one token"
        )
    width = int(column.max())
    token_index = source[row, column]
    padded = torch.where(inside, token_ids[source], 0)
    return MicroBatch(
        input_ids=padded[:, :width].contiguous(),
        hidden_index=row * width + column - 1,
        targets=token_ids[token_index],
        kept_token_ids=kept_token_ids[token_index],
        token_index=token_index,
        num_targets=row.numel(),
    )


def _kept_of_nothing(kept_token_ids: Tensor) -> Tensor:
    """One row in which the meaningless target 0 could be sampled: no NaN may come of it."""
    row = kept_token_ids.new_full((1, kept_token_ids.shape[1]), NO_TOKEN)
    row[:, :1] = 0
    return row
