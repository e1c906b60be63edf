"""Context length of a model, by its configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# The names and rules of vLLM 0.32 (`config/model.py`: `_get_and_verify_max_len`, and
# `derive_max_model_len_and_key`), so that the learner and the engine have the same limit.
_FIELDS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
# Cohere's models name here what they read, and next to it what they were trained on.
_OVERRIDES = "model_max_length"
# Types of rotary embeddings with which `max_position_embeddings` is the scaled length already.
_SCALED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")


def context_of(config: PreTrainedConfig) -> int | None:
    """Maximum number of tokens that the model reads; None if the configuration has no limit.

    A sliding window is no limit: the model forgets what lies before it, and reads on.
    """
    fields = config.get_text_config().to_dict()
    found = [fields[name] for name in _FIELDS if isinstance(fields.get(name), int)]
    if isinstance(fields.get(_OVERRIDES), int):
        found = [fields[_OVERRIDES]]
    if not found:
        return None
    return int(min(found) * _rope_factor(fields))


def _rope_factor(fields: Mapping[str, Any]) -> float:
    """The factor by which rotary embeddings stretch the positions of the configuration."""
    # Gemma 3 writes the stretched length, whatever the type.
    if "gemma3" in str(fields.get("model_type")):
        return 1.0
    factor = 1.0
    for rope in _rope_settings(fields.get("rope_parameters") or fields.get("rope_scaling")):
        scaled = rope.get("factor")
        if rope.get("rope_type", rope.get("type")) not in _SCALED and scaled is not None:
            factor = float(scaled)
    return factor


def _rope_settings(value: Any) -> Iterator[Mapping[str, Any]]:
    """The settings of all layers, or one for each kind of layer."""
    if not isinstance(value, Mapping):
        return
    nested = [part for part in value.values() if isinstance(part, Mapping)]
    yield from nested or [value]
