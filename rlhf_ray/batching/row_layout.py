"""Layouts that a role's model supports, and the choice among them for every micro-batch."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_ray.batching.layout import (
    MicroBatch,
    find_targets,
    lay_out,
    lay_out_nothing,
    lay_out_padded,
    with_support,
)
from rlhf_ray.batching.layout_cost import PairCosts, choose_rows, pair_costs
from rlhf_ray.batching.micro_batches import plan_micro_batches
from rlhf_ray.batching.packing import (
    decoder_inputs,
    lay_out_packed,
    lay_out_varlen,
    sample_shapes,
)
from rlhf_ray.batching.sequence_split import WHOLE, SequenceSplit
from rlhf_ray.config.groups.training import RoleConfig

_logger = logging.getLogger(__name__)

# By the setting `layout`.
_KINDS = {
    "padded": ("padded",),
    "auto": ("padded", "packed", "shared"),
    "packed": ("packed", "shared"),
}

FLASH = "flash_attention_2"
_NO_COSTS = PairCosts(causal=0.0, masked=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class RowLayout:
    """Layout of the samples of a micro-batch in rows, for one role.

    Attributes:
        setting: "padded", "packed", "varlen" or "auto", as far as the role's model supports it.
        costs: costs of attention in that model.
        max_tokens: bound of rows x longest row of one forward pass on one rank; see
            `plan_micro_batches`.
        split: this rank's place among the ranks that compute every sample together; with others,
            rows are padded.
        num_copies: ranks that compute the same whole samples together (a tensor group).
        copy: number of this rank among them, from 0.
    """

    setting: str
    costs: PairCosts
    max_tokens: int
    split: SequenceSplit = WHOLE
    num_copies: int = 1
    copy: int = 0

    @property
    def ranks_per_sample(self) -> int:
        """Ranks that compute every sample together, and then all know the result."""
        return self.split.size * self.num_copies

    @property
    def is_first(self) -> bool:
        """Whether this rank answers for those that compute samples together."""
        return self.split.index == 0 and self.copy == 0

    def lay_out(
        self,
        token_ids: Tensor,
        lengths: Tensor,
        loss_mask: Tensor,
        support_token_ids: Tensor | None,
        rows: Sequence[int],
    ) -> MicroBatch:
        """Lay out the samples `rows` in the cheapest way; arguments, errors: see `layout.lay_out`.

        The layouts differ in `input_ids`, `packing` and `hidden_index` alone, so a loss sees the
        same tokens in the same order whichever layout a rank takes.
        """
        if self.setting == "padded":
            return lay_out(token_ids, lengths, loss_mask, support_token_ids, rows)
        return with_support(self._laid_out(token_ids, lengths, loss_mask, rows), support_token_ids)

    def _laid_out(
        self, token_ids: Tensor, lengths: Tensor, loss_mask: Tensor, rows: Sequence[int]
    ) -> MicroBatch:
        targets = find_targets(lengths, loss_mask, rows)
        # A rank with fewer micro-batches runs empty ones, and they have no shape to choose by.
        if targets.sample.numel() == 0:
            return lay_out_nothing(token_ids.device)
        shapes = sample_shapes(token_ids, targets)
        if self.setting == "varlen":
            return lay_out_varlen(token_ids, targets, shapes)
        chosen = choose_rows(
            shapes, self.costs, kinds=_KINDS[self.setting], max_tokens=self.max_tokens
        )
        if chosen.kind == "padded":
            return lay_out_padded(token_ids, targets)
        return lay_out_packed(token_ids, targets, shapes, chosen)

    def plan(self, token_ids: Tensor, lengths: Tensor, loss_mask: Tensor) -> list[list[int]]:
        """Micro-batches of all samples, on one rank; see `plan_micro_batches`."""
        targets = find_targets(lengths, loss_mask, range(lengths.shape[0]))
        (plan,) = plan_micro_batches(
            lengths.tolist(),
            1,
            self.max_tokens,
            layout=self.setting,
            shapes=sample_shapes(token_ids, targets),
            ranks_per_sample=self.split.size,
        )
        return plan


def row_layout(
    decoder: Any, role: RoleConfig, attention: str, *, trial: Any | None = None
) -> RowLayout:
    """Choose the layouts of a role: the setting, as far as the role's model supports it.

    With flash-attn, "auto" is "varlen"; `training.roles.row_trials` tries that in the engine.

    Args:
        decoder: of transformers; if it supports padded rows only, `role.layout` "auto" uses them
            and logs a warning. It must not be sharded yet.
        attention: the attention implementation that the decoder was loaded with.
        trial: a decoder of the same classes to try with a few tokens; None tries `decoder`.

    Raises:
        ValueError: `role.layout` is "packed" and the decoder does not support it.
    """
    max_tokens = role.max_tokens_per_micro_batch
    if role.usable_layout == "varlen" or (role.usable_layout, attention) == ("auto", FLASH):
        return RowLayout(setting="varlen", costs=_NO_COSTS, max_tokens=max_tokens)
    is_padded = role.usable_layout == "padded"
    obstacle = "" if is_padded else _obstacle(decoder, attention, trial or decoder)
    if obstacle and role.layout == "packed":
        raise ValueError(
            f"layout=packed: {type(decoder).__name__} cannot have several samples in a row: "
            f"{obstacle}; use layout=auto or layout=padded"
        )
    if obstacle:
        _logger.warning(
            "%s runs on padded rows, one sample each: %s", type(decoder).__name__, obstacle
        )
    if obstacle or role.usable_layout == "padded":
        return RowLayout(setting="padded", costs=_NO_COSTS, max_tokens=max_tokens)
    config = decoder.config.get_text_config()
    embeddings = decoder.get_input_embeddings().weight
    costs = pair_costs(
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_parameters=sum(p.numel() for p in decoder.parameters() if p is not embeddings),
    )
    return RowLayout(setting=role.layout, costs=costs, max_tokens=max_tokens)


def _obstacle(decoder: Any, attention: str, trial: Any) -> str:
    """The reason why a decoder cannot have several samples in a row; empty if it can."""
    if attention not in ("sdpa", "eager"):
        return f"model.attention={attention} takes no mask for every pair of tokens"
    # A mask that is handed over replaces the model's own. A sliding window then stops working
    # unnoticed: the few short samples below would fit into it.
    config = decoder.config.get_text_config().to_dict()
    special = {kind for kind in config.get("layer_types") or () if kind != "full_attention"}
    if special:
        return f"it has layers of {', '.join(sorted(special))}"
    for name in ("sliding_window", "attention_chunk_size"):
        if config.get(name) is not None and "layer_types" not in config:
            return f"its attention is limited by {name}={config[name]}"
    known = inspect.signature(decoder.forward).parameters
    missing = [name for name in ("position_ids", "attention_mask") if name not in known]
    if missing:
        return f"its forward pass has no {' and no '.join(missing)}"
    return _difference(trial)


@torch.no_grad()
def _difference(decoder: Any) -> str:
    """Describe how hidden states of packed samples are wrong; empty if they are right.

    Tried and not looked up: an architecture may ignore positions or masks without saying so, and
    then samples of a row would see each other, which no loss would show.
    """
    weight = decoder.get_input_embeddings().weight
    device, vocabulary = weight.device, weight.shape[0]
    # Two samples with the same prompt, one of them with a hole in its mask, and a third one: this
    # covers a shared prompt, several trees in a row and a branch that goes on after a gap.
    samples = ([5, 6, 7, 8, 9, 10], [5, 6, 7, 11, 12], [13, 14, 15, 16])
    masks = ([0, 0, 0, 1, 0, 1], [0, 0, 0, 1, 1], [0, 1, 1, 1])
    token_ids = torch.tensor([token % vocabulary for tokens in samples for token in tokens])
    mask = torch.tensor([bool(keep) for keeps in masks for keep in keeps])
    lengths = torch.tensor([len(tokens) for tokens in samples])

    def hidden(layout: str) -> Tensor:
        rows = RowLayout(setting=layout, costs=_NO_COSTS, max_tokens=1 << 30)
        batch = rows.lay_out(
            token_ids.to(device),
            lengths.to(device),
            mask.to(device),
            None,
            (0, 1, 2),
        )
        inputs = decoder_inputs(decoder, batch.input_ids, batch.packing)
        states = decoder(**inputs, use_cache=False).last_hidden_state
        return states.flatten(0, 1)[batch.hidden_index].double()

    expected = hidden("padded")
    try:
        found = hidden("packed")
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return f"given a mask, it fails ({type(error).__name__}: {error})"
    difference = float((found - expected).abs().max())
    # Only rounding may differ: kernels add in another order for another shape.
    bound = min(1000 * torch.finfo(decoder.dtype).eps, 0.05) * float(expected.abs().max())
    if difference <= bound:
        return ""
    return f"its hidden states are then off by {difference:.3g} (at most {bound:.3g} is rounding)"
