"""Models whose samples several ranks compute together (`sequence_parallel_size`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.models.checks.config_file import load_model_config


def check_divisible(model: ModelConfig, size: int, *, key: str, role: str) -> None:
    """Refuse a model whose attention cannot be divided over `size` ranks.

    Args:
        key: dotted name of the setting with the path.
        role: configuration group of the role.

    Raises:
        RequestError: names the model, the field of its configuration, and sizes that would do.
    """
    problem = division_problem(load_model_config(model, key=key).get_text_config().to_dict(), size)
    if problem:
        raise RequestError(
            f"{role}.sequence_parallel_size={size}: {key} is {model.path!r}, {problem}"
        )


def division_problem(config: Mapping[str, Any], size: int) -> str:
    """A sentence if attention cannot be divided over `size` ranks, else an empty string.

    Every rank computes some of the heads. Key and value heads that are too few are repeated.

    Args:
        config: of the language model, as a dictionary.
    """
    heads, kv_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if not isinstance(heads, int) or config.get("kv_lora_rank") is not None:
        return "whose attention has no heads of its own to divide; set it to 1"
    kv_heads = kv_heads if isinstance(kv_heads, int) else heads
    sizes = [n for n in range(1, heads + 1) if _divides(heads, kv_heads, n)]
    if size not in sizes:
        return (
            f"which has {heads} attention heads and {kv_heads} key-value heads, and they cannot be "
            f"divided; take one of {', '.join(map(str, sizes))}"
        )
    limited = {kind for kind in config.get("layer_types") or () if kind != "full_attention"}
    if limited:
        return f"which has layers of {', '.join(sorted(limited))}; set it to 1"
    for name in ("sliding_window", "attention_chunk_size"):
        if config.get(name) is not None and "layer_types" not in config:
            return f"whose attention is limited by {name}={config[name]}; set it to 1"
    return ""


def _divides(heads: int, kv_heads: int, size: int) -> bool:
    return heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)
