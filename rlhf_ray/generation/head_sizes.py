"""The sizes of attention heads that vLLM has kernels for, checked before an engine starts.

An engine that lacks the size fails after most of a minute, with words about its memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.generation import EngineConfig
from rlhf_ray.config.groups.model import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# vLLM 0.32, v1/attention/backends/cpu_attn.py: `CPUAttentionBackend.get_supported_head_sizes`.
# Importing it takes ten seconds and needs the environment of an engine; a test compares the two.
# On a GPU every size has a kernel: flash-attn has multiples of 8, Triton's has sizes from 32 on,
# and flex attention has all.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
# Attention over compressed keys (DeepSeek) has its own kernels, and models without attention none.
_OTHER_ATTENTION = ("kv_lora_rank", "state_size", "ssm_cfg")


def check_head_size(model: ModelConfig, engine: EngineConfig, *, key: str = "model.path") -> None:
    """Refuse a model whose heads the engine cannot compute.

    Args:
        key: dotted name of the setting with the path.

    Raises:
        RequestError: names the size and those that there are; or the configuration cannot be read.
    """
    # Seconds of import, which the description of a stage does not need.
    from rlhf_ray.models.checks.config_file import load_model_config

    if engine.num_gpus > 0:
        return
    size = head_size(load_model_config(model, key=key))
    if size is None or size in CPU_HEAD_SIZES:
        return
    raise RequestError(
        f"{key} is {model.path!r}: attention heads of {size} dimensions, for which vLLM has no "
        f"kernel on a CPU; there are kernels for {', '.join(map(str, CPU_HEAD_SIZES))}. Take "
        f"another model, or engines on GPUs (num_gpus)"
    )


def head_size(config: PreTrainedConfig) -> int | None:
    """Dimensions of an attention head as vLLM reads them; None if the configuration has none."""
    text = config.get_text_config()
    fields = text.to_dict()
    fields |= {name: fields[own] for name, own in text.attribute_map.items() if own in fields}
    if any(fields.get(name) is not None for name in _OTHER_ATTENTION):
        return None
    if isinstance(fields.get("head_dim"), int) and fields["head_dim"] > 0:
        return fields["head_dim"]
    hidden, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1:
        return None
    return hidden // heads
