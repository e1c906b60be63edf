"""Attention over whole samples for ranks that hold pieces of them (DeepSpeed Ulysses).

Jacobs et al. 2023, arXiv:2309.14509. Before attention, the ranks of a group exchange pieces of all
heads for whole samples of some heads; after it they exchange back.

DeepSpeed is not told of the groups (`mpu`, `sequence_parallel_size`). To it, all ranks are
data-parallel: ZeRO shards over all of them at every stage, checkpoints are those of as many plain
ranks, and gradients are averaged over all. DeepSpeed 0.19.8 would divide by the world at stage 3
and by the groups below it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
from torch import Tensor
from torch.distributed import ProcessGroup
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlhf_ray.batching.sequence_split import SequenceSplit
from rlhf_ray.training.engine.ranks import rank, world_size


def sequence_group(size: int, *, timeout_s: float) -> tuple[SequenceSplit, ProcessGroup]:
    """Make groups of neighbouring ranks; returns this rank's place and group. All ranks call it.

    Args:
        size: ranks of a group; divides the number of ranks.
        timeout_s: longest wait of a collective operation for the other ranks of the group.
    """
    assert world_size() % size == 0, f"groups of {size} among {world_size()} ranks"
    groups = [
        # Every rank takes part in making every group.
        torch.distributed.new_group(
            list(range(first, first + size)), timeout=timedelta(seconds=timeout_s)
        )
        for first in range(0, world_size(), size)
    ]
    own: Any = groups[rank() // size]
    return SequenceSplit(size=size, index=rank() % size), own


class UlyssesAttention:
    """The attention function of transformers, replaced while this object is open and on.

    transformers looks its functions up by name, and other code asks for the same name (masks,
    flash-attn's own settings). So the entry is replaced, as DeepSpeed itself does it, and put back
    by `close`. One model per process.

    Args:
        config: of the model, whose heads `models.checks.parallelism` has checked.
        attention: name of the attention function that the model was loaded with.
    """

    def __init__(self, config: PreTrainedConfig, attention: str, group: ProcessGroup) -> None:
        text: Any = config.get_text_config()
        # DeepSpeed has a class of that name, and takes torch's.
        torch_group: Any = group
        self._name = attention
        self._plain: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[attention]
        self._exchange = _AnyNumberOfRows(
            attn=self._plain,
            batch_size=1,
            attn_head_count=text.num_attention_heads,
            attn_head_size=_head_size(text),
            kv_head_count=_kv_heads(text),
            num_hidden_layers=text.num_hidden_layers,
            process_group=torch_group,
            seq_length_is_variable=True,
        )
        self.is_on = False
        ALL_ATTENTION_FUNCTIONS[attention] = self

    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **settings: Any,
    ) -> Any:
        """Attention with the arguments of transformers; query, key, value [B, heads, P, size]."""
        if not self.is_on:
            return self._plain(module, query, key, value, attention_mask, **settings)
        # The model made the mask for its piece. The whole sample is causal without one.
        return self._exchange(module, query, key, value, None, **settings)

    def close(self) -> None:
        """Put the plain attention back."""
        ALL_ATTENTION_FUNCTIONS[self._name] = self._plain


class _AnyNumberOfRows(UlyssesSPAttentionHF):
    """DeepSpeed's exchange, which knows one number of rows, for a number that changes."""

    def forward(self, module: Any, query: Tensor, *inputs: Any, **settings: Any) -> Any:
        rows = query.shape[0]
        self.batch_size = rows
        self.required_query_shape = _with_rows(self.required_query_shape, rows)
        self.required_key_value_shape = _with_rows(self.required_key_value_shape, rows)
        self.required_context_shape = _with_rows(self.required_context_shape, rows)
        return super().forward(module, query, *inputs, **settings)


def _with_rows(shape: torch.Size, rows: int) -> torch.Size:
    return torch.Size([shape[0], rows, *shape[2:]])


def _head_size(text: Any) -> int:
    size = text.to_dict().get("head_dim")
    return text.hidden_size // text.num_attention_heads if size is None else size


def _kv_heads(text: Any) -> int:
    heads = text.to_dict().get("num_key_value_heads")
    return text.num_attention_heads if heads is None else heads
