"""Forward passes over samples that several ranks compute together, and over samples of one rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from rlhf_ray.batching.layout import Packing
from rlhf_ray.batching.packing import decoder_inputs
from rlhf_ray.batching.sequence_split import SequenceSplit


class DividedAttention(Protocol):
    """Attention over whole samples of which ranks hold pieces; see `UlyssesAttention`."""

    is_on: bool

    def close(self) -> None: ...


class States(NamedTuple):
    """Hidden states of some of the M predictions of a micro-batch.

    Attributes:
        hidden [m, H].
        rows: index of these m predictions in a tensor [M, ...].
        join: puts values [m, ...] of all ranks together to [M, ...]. Values of other ranks have
            no gradient here: they have it there, and gradients are summed over ranks.
    """

    hidden: Tensor
    rows: Tensor | slice
    join: Callable[[Tensor], Tensor]


class WholeSequences:
    """Every sample is computed by one rank."""

    def states(
        self, decoder: Any, input_ids: Tensor, hidden_index: Tensor, packing: Packing | None
    ) -> States:
        """Last hidden states at flattened positions [M] of rows [B, T]."""
        inputs = decoder_inputs(decoder, input_ids, packing)
        hidden = decoder(**inputs, use_cache=False).last_hidden_state
        chosen = hidden.flatten(0, 1)[hidden_index]
        return States(hidden=chosen, rows=slice(None), join=lambda values: values)

    def close(self) -> None:
        """Nothing to put back."""


class SplitSequences:
    """Every sample is computed by the ranks of a group together, each a piece of it.

    Args:
        split: this rank's place in the group.
        attention: exchanges pieces for heads among the ranks of the group.
    """

    def __init__(
        self, split: SequenceSplit, group: ProcessGroup, attention: DividedAttention
    ) -> None:
        self._split = split
        self._group = group
        self._attention = attention
        self._attention.is_on = True

    def states(
        self, decoder: Any, input_ids: Tensor, hidden_index: Tensor, packing: Packing | None
    ) -> States:
        """Last hidden states of this rank's part of the predictions; see `SequenceSplit.cut`."""
        if not self._attention.is_on:
            return WholeSequences().states(decoder, input_ids, hidden_index, packing)
        assert packing is None or packing.visible is None, "no rank has a mask for whole samples"
        positions = None if packing is None else packing.position_ids
        piece = self._split.cut(input_ids, hidden_index, positions)
        hidden = decoder(
            input_ids=piece.input_ids, position_ids=piece.position_ids, use_cache=False
        ).last_hidden_state

        return States(
            hidden=hidden.flatten(0, 1)[piece.hidden_index],
            rows=piece.chosen,
            join=lambda values: _joined(values, piece.is_own, self._group),
        )

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Let every rank compute whole samples for a `with` block."""
        self._attention.is_on = False
        try:
            yield
        finally:
            self._attention.is_on = True

    def close(self) -> None:
        """Put the plain attention back."""
        self._attention.close()


Sequences = WholeSequences | SplitSequences


def _joined(values: Tensor, is_own: Tensor, group: ProcessGroup) -> Tensor:
    """Put the values [m, ...] of all ranks of a group together to [M, ...]."""
    places = is_own.nonzero()[:, 0]
    whole = values.new_zeros((is_own.shape[0], *values.shape[1:]))
    # A rank without a prediction has one meaningless value: it is dropped, but the empty rest
    # keeps the graph, so that the rank takes part in the exchanges of the backward pass.
    whole = whole.index_copy(0, places, values[: places.shape[0]])
    found = whole.detach().clone()
    # A prediction is one rank's, and 0 on the others.
    torch.distributed.all_reduce(found, group=group)
    mine = is_own.view(-1, *(1 for _ in values.shape[1:]))
    # `where` and no sum: outside of a support log-probabilities are minus infinity.
    return torch.where(mine, whole, found)
