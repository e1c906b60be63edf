"""Layout of ragged samples in padded rows for one forward pass.

The decoder sees rows, padded on the right to the width that this micro-batch needs. With one
sample per row no attention mask is needed: a causal decoder never looks to the right, so padding
cannot reach a token that counts. Rows of several samples (`packing.py`) come with a mask.
Everything after the decoder works on the predicted tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_ray.records.support import NO_TOKEN


class Packing(NamedTuple):
    """Positions and attention mask for rows of several samples.

    Attributes:
        position_ids [B, T] int64: position of each token in its own sample.
        visible [B, T, T] bool: whether a token (second dimension) attends to another (third). None
            if the attention tells samples apart by their positions: B is 1 then, and a sample
            begins at every position 0.
    """

    position_ids: Tensor
    visible: Tensor | None


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """Inputs of one forward pass with M predicted tokens.

    Attributes:
        input_ids [B, T] int64: padded with 0 on the right; up to the last token that a
            prediction needs, which is the one before the last predicted token.
        packing: None if every row is one sample.
        hidden_index [M] int64: place in the flattened [B * T] of the token before each predicted
            token; its hidden state predicts that token.
        targets [M] int64: the predicted tokens.
        support_token_ids [M, K] int32: support of their sampling distributions, filled up with
            -1; None for the whole vocabulary.
        token_index [M] int64: places of the predicted tokens among the ragged [N] tokens.
        num_targets: M, or 0 if nothing is predicted. Then `hidden_index`, `targets` and
            `support_token_ids` have one meaningless entry, so that the model still runs: every
            forward and backward pass is a collective operation.
    """

    input_ids: Tensor
    packing: Packing | None
    hidden_index: Tensor
    targets: Tensor
    support_token_ids: Tensor | None
    token_index: Tensor
    num_targets: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """The M predicted tokens of R samples, sample after sample.

    Attributes:
        starts [R] int64: place of each sample's first token among the ragged tokens.
        lengths [R] int64: tokens of each sample.
        sample [M] int64: number of the sample that a predicted token belongs to.
        column [M] int64: place of the predicted token in its sample; never 0.
    """

    starts: Tensor
    lengths: Tensor
    sample: Tensor
    column: Tensor

    @property
    def token_index(self) -> Tensor:
        """Places of the predicted tokens among the ragged tokens, [M] int64."""
        return self.starts[self.sample] + self.column


def lay_out(
    token_ids: Tensor,
    lengths: Tensor,
    loss_mask: Tensor,
    support_token_ids: Tensor | None,
    rows: Sequence[int],
) -> MicroBatch:
    """Lay out the samples `rows` of ragged data, one sample a row.

    Args:
        token_ids [N] int64, lengths [S] int64, loss_mask [N] bool (True on predicted tokens),
            support_token_ids [N, K] int32, or None for the whole vocabulary.
        rows: samples of this micro-batch; may be empty.

    Raises:
        ValueError: the first token of a sample is in the mask: nothing precedes it.
    """
    targets = find_targets(lengths, loss_mask, rows)
    if targets.sample.numel() == 0:
        return with_support(lay_out_nothing(token_ids.device), support_token_ids)
    return with_support(lay_out_padded(token_ids, targets), support_token_ids)


def find_targets(lengths: Tensor, loss_mask: Tensor, rows: Sequence[int]) -> Targets:
    """Find the predicted tokens of the samples `rows`; see `lay_out`."""
    device = lengths.device
    wanted = torch.tensor(list(rows), dtype=torch.int64, device=device)
    row_lengths = lengths[wanted]
    starts = (lengths.cumsum(0) - lengths)[wanted]
    inside, source = _columns(starts, row_lengths, int(row_lengths.max()) if len(rows) else 0)
    predicted = inside & loss_mask[source] if len(rows) else inside
    sample, column = predicted.nonzero(as_tuple=True)
    if column.numel() and int(column.min()) == 0:
        first = rows[int(sample[column == 0][0])]
        raise ValueError(
            f"the first token of sample {first} is marked as sampled, but nothing precedes it: "
            f"a prompt has at least one token"
        )
    return Targets(starts=starts, lengths=row_lengths, sample=sample, column=column)


def lay_out_nothing(device: torch.device) -> MicroBatch:
    """Lay out a micro-batch in which nothing is predicted."""
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    return MicroBatch(
        input_ids=zero[None],
        packing=None,
        hidden_index=zero,
        targets=zero,
        support_token_ids=None,
        token_index=torch.zeros(0, dtype=torch.int64, device=device),
        num_targets=0,
    )


def lay_out_padded(token_ids: Tensor, targets: Targets) -> MicroBatch:
    """Lay out one sample per row; at least one token must be predicted."""
    # The last predicted token predicts nothing, so a row ends before it.
    width = int(targets.column.max())
    inside, source = _columns(targets.starts, targets.lengths, width)
    return micro_batch(
        token_ids,
        targets,
        input_ids=torch.where(inside, token_ids[source], 0),
        packing=None,
        hidden_index=targets.sample * width + targets.column - 1,
    )


def micro_batch(
    token_ids: Tensor,
    targets: Targets,
    *,
    input_ids: Tensor,
    packing: Packing | None,
    hidden_index: Tensor,
) -> MicroBatch:
    """Build a `MicroBatch`: a layout gives its rows, the rest comes from the ragged tokens."""
    token_index = targets.token_index
    return MicroBatch(
        input_ids=input_ids,
        packing=packing,
        hidden_index=hidden_index,
        targets=token_ids[token_index],
        support_token_ids=None,
        token_index=token_index,
        num_targets=token_index.numel(),
    )


def with_support(batch: MicroBatch, support_token_ids: Tensor | None) -> MicroBatch:
    """Add the support of the targets, taken from the support of all tokens [N, K]."""
    if support_token_ids is None:
        return batch
    if batch.num_targets:
        return replace(batch, support_token_ids=support_token_ids[batch.token_index])
    return replace(batch, support_token_ids=_support_of_nothing(support_token_ids))


def _support_of_nothing(support_token_ids: Tensor) -> Tensor:
    """One row that contains the meaningless target 0, whose loss would be NaN otherwise."""
    row = support_token_ids.new_full((1, support_token_ids.shape[1]), NO_TOKEN)
    row[:, :1] = 0
    return row


def _columns(starts: Tensor, lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Per sample and column [R, width]: whether the token exists, and its place (or 0)."""
    columns = torch.arange(width, device=starts.device)
    inside = columns < lengths[:, None]
    return inside, torch.where(inside, starts[:, None] + columns, 0)
