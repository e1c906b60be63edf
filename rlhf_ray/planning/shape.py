"""The shape of a decoder, from its `config.json`: weights, cache, and work of a token."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Decoders with grouped attention and a gated MLP in each layer.
_DENSE = (
    *("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text"),
    *("olmo2", "smollm3"),
)
# The same with experts of that form in all layers, or in all but some.
_EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe", "deepseek_v2", "deepseek_v3")
_KNOWN = (*_DENSE, *_EXPERTS)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """Numbers of a decoder. Norms and biases are not counted.

    Attributes:
        hidden, layers, vocab: of the decoder.
        heads, kv_heads: of attention; those of keys may be fewer.
        query_width: numbers of a token's queries, in one layer.
        output_width: numbers of a token's attended values, in one layer.
        cached_width: numbers of a token that one layer keeps in the cache.
        attention_weights: matrices of attention, in one layer.
        inner: width of the MLP of a layer without experts.
        expert_layers: layers with experts.
        experts, experts_per_token, expert_inner: of such a layer; 0 without experts.
        shared_inner: width of the MLP that every token goes through next to its experts.
        is_tied: the head is the embedding.
        linear: inputs and outputs of the linear layers in one layer; None with experts.
    """

    hidden: int
    layers: int
    vocab: int
    heads: int
    kv_heads: int
    query_width: int
    output_width: int
    cached_width: int
    attention_weights: int
    inner: int
    expert_layers: int = 0
    experts: int = 0
    experts_per_token: int = 0
    expert_inner: int = 0
    shared_inner: int = 0
    is_tied: bool = True
    linear: Mapping[str, tuple[int, int]] | None = field(default=None, hash=False)

    @property
    def embedding(self) -> int:
        """Weights of the embedding, as many as those of the head."""
        return self.vocab * self.hidden

    @property
    def experts_weights(self) -> int:
        """Weights of all experts of all layers."""
        return self.expert_layers * 3 * self.hidden * self.experts * self.expert_inner

    @property
    def common_weights(self) -> int:
        """Weights of the layers that every token uses."""
        plain = (self.layers - self.expert_layers) * 3 * self.hidden * self.inner
        router = self.hidden * self.experts
        shared = 3 * self.hidden * self.shared_inner + router
        return self.layers * self.attention_weights + plain + self.expert_layers * shared

    @property
    def layer_weights(self) -> int:
        """Weights of the layers, without the embedding and the head."""
        return self.common_weights + self.experts_weights

    @property
    def weights(self) -> int:
        """All parameters."""
        return self.layer_weights + (1 if self.is_tied else 2) * self.embedding

    @property
    def active_weights(self) -> int:
        """Weights that one token is multiplied with, those of the head included."""
        used = self.experts_weights * self.experts_per_token // max(1, self.experts)
        return self.common_weights + used + self.embedding

    @property
    def cache_values(self) -> int:
        """Numbers of a token that all layers keep in the cache."""
        return self.layers * self.cached_width

    @property
    def inner_per_token(self) -> int:
        """Width of the widest MLP that a token goes through in one layer."""
        routed = self.experts_per_token * self.expert_inner + self.shared_inner
        return max(self.inner if self.expert_layers < self.layers else 0, routed)


def model_shape(model: Mapping[str, Any]) -> ModelShape | None:
    """The shape of the values of a model's `config.json`; None for a family that is not known."""
    if model.get("model_type") not in _KNOWN:
        return None
    try:
        return _latent_shape(model) if model.get("kv_lora_rank") else _grouped_shape(model)
    except (KeyError, TypeError, ZeroDivisionError):
        return None  # Other checks say what is wrong with the file.


def _grouped_shape(model: Mapping[str, Any]) -> ModelShape:
    hidden, heads = model["hidden_size"], model["num_attention_heads"]
    queries, keys = _attention_widths(model)
    return ModelShape(
        heads=heads,
        kv_heads=model.get("num_key_value_heads") or heads,
        query_width=queries,
        output_width=queries,
        cached_width=2 * keys,
        attention_weights=2 * hidden * (queries + keys),
        **_common_fields(model),
    )


def _latent_shape(model: Mapping[str, Any]) -> ModelShape:
    """A decoder whose keys and values are kept as one latent vector (DeepSeek's MLA)."""
    hidden, heads = model["hidden_size"], model["num_attention_heads"]
    latent, rotary = model["kv_lora_rank"], model["qk_rope_head_dim"]
    plain, value = model["qk_nope_head_dim"], model["v_head_dim"]
    queries = heads * (plain + rotary)
    low = model.get("q_lora_rank")
    of_queries = hidden * queries if not low else low * (hidden + queries)
    of_keys = hidden * (latent + rotary) + latent * heads * (plain + value)
    return ModelShape(
        heads=heads,
        kv_heads=heads,
        query_width=queries,
        output_width=heads * value,
        cached_width=latent + rotary,
        attention_weights=of_queries + of_keys + heads * value * hidden,
        **_common_fields(model),
    )


def _common_fields(model: Mapping[str, Any]) -> dict[str, Any]:
    layers, experts = model["num_hidden_layers"], _num_experts(model)
    fields: dict[str, Any] = {
        "hidden": model["hidden_size"],
        "layers": layers,
        "vocab": model["vocab_size"],
        "inner": model["intermediate_size"],
        # A file that does not say has one matrix, for a lower bound.
        "is_tied": bool(model.get("tie_word_embeddings", True)),
        "linear": linear_shapes(model),
    }
    if not experts:
        return fields
    width = model.get("moe_intermediate_size") or model["intermediate_size"]
    shared = model.get("shared_expert_intermediate_size") or 0
    shared += (model.get("n_shared_experts") or 0) * width
    return fields | {
        "expert_layers": _expert_layers(model, layers),
        "experts": experts,
        "experts_per_token": model.get("num_experts_per_tok") or 1,
        "expert_inner": width,
        "shared_inner": shared,
    }


def _expert_layers(model: Mapping[str, Any], layers: int) -> int:
    """The number of layers with experts: not the first few, nor those in a list, nor between."""
    step = model.get("decoder_sparse_step") or model.get("moe_layer_freq") or 1
    first, plain = model.get("first_k_dense_replace") or 0, model.get("mlp_only_layers") or ()
    return sum(
        layer >= first and layer not in plain and (layer + 1) % step == 0 for layer in range(layers)
    )


def _attention_widths(model: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of a token's queries, and of its keys, in one layer."""
    heads = model["num_attention_heads"]
    head_size = model.get("head_dim") or model["hidden_size"] // heads
    return heads * head_size, (model.get("num_key_value_heads") or heads) * head_size


def _num_experts(model: Mapping[str, Any]) -> int:
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return next((model[name] for name in names if model.get(name)), 0)


def linear_shapes(model: Mapping[str, Any]) -> dict[str, tuple[int, int]] | None:
    """Inputs and outputs of the linear layers in one layer of a decoder, by their names there.

    None for a family that is not known, or with experts, whose weights are in no linear layer.
    """
    if model.get("model_type") not in _DENSE or _num_experts(model):
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
    shape = model_shape(model)
    if shape is not None:
        return shape.weights
    dtype = model.get("dtype") or model.get("torch_dtype")
    files = Path(path).expanduser().glob("*.safetensors")
    total = sum(file.stat().st_size for file in files)
    return total // _BYTES[dtype] if total and dtype in _BYTES else None
