"""Ways of computing samples that are tried on the device, once the engine has the model.

Samples in one row that the attention tells apart by their positions, and samples that several
ranks compute together. Neither can be tried where the model is loaded: flash-attn runs on GPUs
only, and ranks meet there.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_ray.batching.row_layout import RowLayout
from rlhf_ray.batching.sequence_split import WHOLE
from rlhf_ray.config.groups.training import RoleConfig
from rlhf_ray.training.engine.ranks import largest_over_ranks, rank, training_device
from rlhf_ray.training.engine.ulysses import UlyssesAttention, sequence_group
from rlhf_ray.training.forward.scoring import Predict
from rlhf_ray.training.forward.sequences import Sequences, SplitSequences

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class StartedModel:
    """The model of a role in its engine.

    Attributes:
        module: a `PolicyForward` or `ValueForward`; it may be sharded.
        decoder: its decoder.
        attention: the attention function that it was loaded with.
        predict: runs the module.
    """

    module: Any
    decoder: Any
    attention: str
    predict: Predict


def try_rows(
    model: StartedModel, layout: RowLayout, role: RoleConfig, *, timeout_s: float
) -> tuple[RowLayout, Sequences]:
    """Divide samples over `role.sequence_parallel_size` ranks, and try the rows of the role.

    All ranks call it together, last: what checks the model by whole samples comes before it.

    Args:
        timeout_s: longest wait of a collective operation for the other ranks.

    Returns:
        the layout, padded if `role.layout` is auto and the model takes no samples in one row; and
        what to close at the end of the role.

    Raises:
        ValueError: the model gives other hidden states than for padded samples on one rank.
    """
    name = type(model.decoder).__name__
    if layout.setting == "varlen" and (problem := _difference(model, layout)):
        if role.layout == "varlen":
            raise ValueError(
                f"layout=varlen: {name} cannot have several samples in a row: {problem}; use "
                f"layout=padded"
            )
        _logger.warning("%s runs on padded rows, one sample each: %s", name, problem)
        layout = replace(layout, setting="padded")
    if (copies := role.tensor_parallel_size) > 1:
        layout = replace(layout, num_copies=copies, copy=rank() % copies)
    if role.sequence_parallel_size == 1:
        return layout, model.module.sequences
    split, group = sequence_group(role.sequence_parallel_size, timeout_s=timeout_s)
    attention = UlyssesAttention(model.decoder.config, model.attention, group)
    sequences = SplitSequences(split, group, attention)
    model.module.sequences = sequences
    # Masks for packed rows are not divided; rules refuse layout=packed.
    setting = "varlen" if layout.setting == "varlen" else "padded"
    layout = replace(layout, setting=setting, split=split)
    with ExitStack() as undo:
        undo.callback(sequences.close)
        if problem := _difference(model, layout):
            raise ValueError(
                f"sequence_parallel_size={split.size}: {name} cannot be divided: {problem}; set "
                f"sequence_parallel_size to 1"
            )
        undo.pop_all()
    return layout, sequences


@torch.no_grad()
def _difference(model: StartedModel, layout: RowLayout) -> str:
    """Describe how hidden states are wrong in this layout; empty if they are right on all ranks.

    Tried and not looked up: a model may ignore positions, or call its attention in another way
    than transformers' own. Then samples of a row would see each other, or a rank its piece alone.
    """
    padded = replace(layout, setting="padded", split=WHOLE)
    sequences: Sequences = model.module.sequences
    is_split = isinstance(sequences, SplitSequences)
    on_one_rank: AbstractContextManager[None] = sequences.whole() if is_split else nullcontext()
    with on_one_rank:
        _, expected = _states(model, padded, layout.split.size)
    chosen, found = _states(model, layout, layout.split.size)
    expected = expected[chosen]
    difference = float((found - expected).abs().max()) if chosen.numel() else 0.0
    # Only rounding may differ: kernels add in another order for another shape.
    scale = float(expected.abs().max()) if chosen.numel() else 0.0
    bound = min(1000 * torch.finfo(model.decoder.dtype).eps, 0.05) * scale
    is_wrong = not difference <= bound
    # All ranks decide alike: one that went on alone would wait for the others for ever.
    if not largest_over_ranks(int(is_wrong), training_device()):
        return ""
    here = f"off by {difference:.3g} (at most {bound:.3g} is rounding)"
    return f"its hidden states are then {here if is_wrong else 'wrong on another rank'}"


def _states(model: StartedModel, layout: RowLayout, num_pieces: int) -> tuple[Tensor, Tensor]:
    """Hidden states of this rank's predictions of two samples, and their places among all."""
    device = training_device()
    # Long enough for a token in every piece.
    lengths = torch.tensor([2 * num_pieces + 3, num_pieces + 2], device=device)
    vocabulary = model.decoder.config.get_text_config().vocab_size
    token_ids = torch.arange(5, 5 + int(lengths.sum()), device=device) % vocabulary
    mask = torch.ones_like(token_ids, dtype=torch.bool)
    mask[lengths.cumsum(0) - lengths] = False
    batch = layout.lay_out(token_ids, lengths, mask, None, (0, 1))
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
        seen.append(outputs.last_hidden_state)

    hook = model.decoder.register_forward_hook(keep)
    try:
        model.predict(batch)
    finally:
        hook.remove()
    states = seen[0].flatten(0, 1).double()
    if layout.split.size == 1:
        return torch.arange(batch.num_targets, device=device), states[batch.hidden_index]
    positions = None if batch.packing is None else batch.packing.position_ids
    piece = layout.split.cut(batch.input_ids, batch.hidden_index, positions)
    own = piece.is_own.nonzero()[:, 0]
    return own, states[piece.hidden_index[: own.numel()]]
