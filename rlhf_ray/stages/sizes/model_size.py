"""The number of a model's weights, from its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Decoders with grouped attention and a gated MLP, or experts of that form, in each layer.
_KNOWN = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "phi3"),
    *("gemma", "gemma2", "gemma3_text", "olmo2", "smollm3"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """Numbers of a decoder.

    Attributes:
        weights: parameters, without norms and biases.
        cache_values: keys and values of one token in all layers.
    """

    weights: int
    cache_values: int


def model_size(model: Mapping[str, Any]) -> ModelSize | None:
    """Sizes from the values of a model's `config.json`; None for a family that is not known."""
    if model.get("model_type") not in _KNOWN:
        return None
    try:
        return _model_size(model)
    except (KeyError, TypeError, ZeroDivisionError):
        return None  # Other checks say what is wrong with the file.


def _model_size(model: Mapping[str, Any]) -> ModelSize:
    hidden, layers = model["hidden_size"], model["num_hidden_layers"]
    heads = model["num_attention_heads"]
    key_heads = model.get("num_key_value_heads") or heads
    head_size = model.get("head_dim") or hidden // heads
    attention = 2 * hidden * head_size * (heads + key_heads)
    experts = model.get("num_local_experts") or model.get("num_experts")
    if experts:
        width = model.get("moe_intermediate_size") or model["intermediate_size"]
        shared = model.get("shared_expert_intermediate_size") or 0
        mlp = 3 * hidden * (experts * width + shared) + hidden * experts
    else:
        mlp = 3 * hidden * model["intermediate_size"]
    # A file that does not say has one matrix, for a lower bound.
    embeddings = 1 if model.get("tie_word_embeddings", True) else 2
    return ModelSize(
        weights=layers * (attention + mlp) + embeddings * model["vocab_size"] * hidden,
        cache_values=2 * layers * key_heads * head_size,
    )


def local_model(path: str) -> Mapping[str, Any] | None:
    """The values of the `config.json` of a model folder; None if it is not on this machine."""
    try:
        values = json.loads((Path(path).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def bytes_of(dtype: str) -> int:
    """Bytes of a number in a format."""
    return 4 if dtype == "float32" else 2


def num_weights(path: str) -> int | None:
    """The number of weights of a model folder; None if it is not on this machine.

    From the bytes of the files where the family is not known, for a model of one number format.
    """
    model = local_model(path)
    if model is None:
        return None
    size = model_size(model)
    if size is not None:
        return size.weights
    dtype = model.get("dtype") or model.get("torch_dtype")
    files = Path(path).expanduser().glob("*.safetensors")
    total = sum(file.stat().st_size for file in files)
    return total // _BYTES[dtype] if total and dtype in _BYTES else None
