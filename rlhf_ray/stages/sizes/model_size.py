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
    queries, keys = _attention_widths(model)
    attention = 2 * hidden * (queries + keys)
    if experts := _num_experts(model):
        width = model.get("moe_intermediate_size") or model["intermediate_size"]
        shared = model.get("shared_expert_intermediate_size") or 0
        mlp = 3 * hidden * (experts * width + shared) + hidden * experts
    else:
        mlp = 3 * hidden * model["intermediate_size"]
    # A file that does not say has one matrix, for a lower bound.
    embeddings = 1 if model.get("tie_word_embeddings", True) else 2
    return ModelSize(
        weights=layers * (attention + mlp) + embeddings * model["vocab_size"] * hidden,
        cache_values=2 * layers * keys,
    )


def _attention_widths(model: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of a token's queries, and of its keys, in one layer."""
    heads = model["num_attention_heads"]
    head_size = model.get("head_dim") or model["hidden_size"] // heads
    return heads * head_size, (model.get("num_key_value_heads") or heads) * head_size


def _num_experts(model: Mapping[str, Any]) -> int:
    return model.get("num_local_experts") or model.get("num_experts") or 0


def linear_shapes(model: Mapping[str, Any]) -> dict[str, tuple[int, int]] | None:
    """Inputs and outputs of the linear layers in one layer of a decoder, by their names there.

    None for a family that is not known, or with experts, whose weights are in no linear layer.
    """
    if model.get("model_type") not in _KNOWN or _num_experts(model):
        return None
    try:
        hidden, inner = int(model["hidden_size"]), int(model["intermediate_size"])
        queries, keys = _attention_widths(model)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    if model["model_type"] == "phi3":
        inputs = {
            "self_attn.qkv_proj": (hidden, queries + 2 * keys),
            "mlp.gate_up_proj": (hidden, 2 * inner),
        }
    else:
        inputs = {
            "self_attn.q_proj": (hidden, queries),
            "self_attn.k_proj": (hidden, keys),
            "self_attn.v_proj": (hidden, keys),
            "mlp.gate_proj": (hidden, inner),
            "mlp.up_proj": (hidden, inner),
        }
    return {
        **inputs,
        "self_attn.o_proj": (queries, hidden),
        "mlp.down_proj": (inner, hidden),
    }


# The advice for sizes that are not known.
NAME_A_FOLDER = "for its sizes name a folder with its config.json, which is enough"


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
