"""Context length of a model, by its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len")


def context_of(config: PreTrainedConfig) -> int | None:
    """Maximum number of tokens that the model reads; None if the configuration has no limit."""
    fields = config.get_text_config().to_dict()
    return min((fields[name] for name in _FIELDS if fields.get(name) is not None), default=None)
