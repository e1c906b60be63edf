"""Division of rows over ranks that compute every sample together (sequence parallelism).

The ranks of a group hold the same samples. Each runs the layers on its piece of every row:

    row       t0 t1 t2 | t3 t4 t5 | t6 -- --        7 tokens on 3 ranks, padded to 9
    rank          0    |     1    |     2

A token is predicted by the state of the token before it, on the rank that holds that one. So each
prediction belongs to one rank, and a rank may have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn


class RowPiece(NamedTuple):
    """This rank's piece of the rows of a micro-batch, with m of its M predictions.

    Attributes:
        input_ids [B, P] int64: P is the width of the rows, divided by the ranks and rounded up.
        position_ids [B, P] int64: positions of these tokens in their samples.
        hidden_index [m] int64: places in the flattened [B * P] whose states predict a target. A
            rank without a prediction has one meaningless entry, so that its model still runs.
        chosen [m] int64: places of these predictions among the M.
        is_own [M] bool: whether a prediction is this rank's.
    """

    input_ids: Tensor
    position_ids: Tensor
    hidden_index: Tensor
    chosen: Tensor
    is_own: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceSplit:
    """A rank's place in its group.

    Attributes:
        size: ranks of the group; 1 without sequence parallelism.
        index: of this rank in the group, from 0.
    """

    size: int = 1
    index: int = 0

    @property
    def described(self) -> str:
        """Words for an error message; empty without sequence parallelism."""
        return f", over sequence_parallel_size={self.size} ranks" if self.size > 1 else ""

    def held(self, length: int) -> int:
        """Tokens of a row of this length that one rank holds, with padding."""
        return -(-length // self.size)

    def cut(
        self, input_ids: Tensor, hidden_index: Tensor, position_ids: Tensor | None = None
    ) -> RowPiece:
        """Cut rows [B, T] and the predictions at places [M] of the flattened [B * T].

        Args:
            position_ids [B, T]: None if every row is one sample.
        """
        num_rows, width = input_ids.shape
        held = self.held(width)
        mine = slice(self.index * held, (self.index + 1) * held)
        # Padding is on the right: a causal decoder never looks there from a token that counts.
        num_padding = held * self.size - width
        padded = nn.functional.pad(input_ids, (0, num_padding))
        if position_ids is None:
            whole = torch.arange(held * self.size, device=input_ids.device).repeat(num_rows, 1)
        else:
            # Padding is one more sample of the row: it begins at position 0, too.
            after = torch.arange(num_padding, device=input_ids.device).repeat(num_rows, 1)
            whole = torch.cat([position_ids, after], dim=1)
        row, column = hidden_index // width, hidden_index % width
        is_own = column // held == self.index
        chosen = is_own.nonzero()[:, 0]
        if chosen.numel() == 0:
            chosen, places = chosen.new_zeros(1), chosen.new_zeros(1)
        else:
            places = (row * held + column - self.index * held)[chosen]
        return RowPiece(
            input_ids=padded[:, mine].contiguous(),
            position_ids=whole[:, mine].contiguous(),
            hidden_index=places,
            chosen=chosen,
            is_own=is_own,
        )


WHOLE = SequenceSplit()
