"""Translation of the configuration into vLLM's engine arguments."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection
from typing import Any

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.generation import LARGEST_TOP_K, GenerationConfig
from rlhf_ray.config.groups.lora import LoraConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.generation.sampling import num_returned

# vLLM's name of the weight receiver, for all transports; see `generation.weights.receiver`.
WEIGHT_BACKEND = "rlhf_ray"
_GIB = 1024**3


# The LoRA ranks that vLLM 0.32 accepts as `max_lora_rank`.
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def engine_arguments(
    generation: GenerationConfig,
    model: ModelConfig,
    *,
    max_sequence_tokens: int,
    lora: LoraConfig | None = None,
    sleeps: bool = False,
) -> dict[str, Any]:
    """Arguments of vLLM's `AsyncEngineArgs`; the user's own come last and win.

    Args:
        lora: settings of the adapter with the names of its layers, if adapters are published alone;
            None for whole weights.
        sleeps: the engine frees its GPU at times. vLLM then allocates from a memory pool.
    """
    arguments = _common_arguments(generation, model) | {
        "max_model_len": max_sequence_tokens,
        "enable_sleep_mode": sleeps,
        # Log-probabilities under the distribution that was sampled from.
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": num_returned(LARGEST_TOP_K, vocab_size=2 * LARGEST_TOP_K),
        "weight_transfer_config": {"backend": WEIGHT_BACKEND},
        "disable_log_stats": True,
        # vllm 0.32.0, v1/worker/gpu_model_runner.py: a prompt that is read in several steps sets
        # the generator of its seed back, which a CPU's cannot do, and the engine ends.
        "enable_chunked_prefill": generation.num_gpus > 0,
    }
    if generation.num_gpus == 0:
        # A step holds a whole sequence then; those of a judge may be longer than samples.
        most = max(generation.max_num_batched_tokens, max_sequence_tokens)
        arguments["max_num_batched_tokens"] = most
    if lora is not None:
        arguments |= {
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": min(rank for rank in _LORA_RANKS if rank >= lora.r),
            # If no targets are named, vLLM gives the head a LoRA layer too, and vLLM 0.32 on a CPU
            # then cannot score several sequences in one step.
            "lora_target_modules": sorted({n.rpartition(".")[2] for n in lora.target_modules}),
        }
    return arguments | generation.extra_engine_args


def server_arguments(
    generation: GenerationConfig,
    model: ModelConfig,
    *,
    model_name: str,
    max_model_tokens: int | None,
    socket: str,
) -> dict[str, Any]:
    """Arguments of vLLM's OpenAI server on a Unix socket; the user's own come last and win."""
    arguments = _common_arguments(generation, model) | {
        "served_model_name": [model_name],
        "uds": socket,
        # The counters show whether the engine makes progress (`serving/replica.py`).
        "disable_log_stats": False,
        "disable_uvicorn_access_log": True,
        "uvicorn_log_level": "warning",
    }
    if max_model_tokens is not None:
        arguments["max_model_len"] = max_model_tokens
    if model.chat_template is not None:
        arguments["chat_template"] = model.chat_template
    return arguments | generation.extra_engine_args


def _common_arguments(generation: GenerationConfig, model: ModelConfig) -> dict[str, Any]:
    """Arguments shared by a run's engines and servers."""
    arguments: dict[str, Any] = {
        "model": model.path,
        "tokenizer": model.tokenizer_path or model.path,
        "trust_remote_code": model.trust_remote_code,
        "dtype": generation.dtype,
        "tensor_parallel_size": generation.tensor_parallel_size,
        "pipeline_parallel_size": generation.pipeline_parallel_size,
        "data_parallel_size": generation.data_parallel_size,
        "distributed_executor_backend": _executor(generation),
        "max_num_seqs": generation.max_num_seqs,
        "max_num_batched_tokens": generation.max_num_batched_tokens,
        "enforce_eager": generation.enforce_eager,
        "enable_prefix_caching": generation.enable_prefix_caching,
        "gpu_memory_utilization": generation.gpu_memory_utilization,
    }
    if generation.kv_cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(generation.kv_cache_gib * _GIB)
    return arguments


def _executor(generation: GenerationConfig) -> str:
    """The way of starting workers; vLLM's default inside a Ray actor may be Ray."""
    if generation.spans_nodes:
        return "ray"
    return "uni" if generation.tensor_parallel_size == 1 else "mp"


def make_vllm_config(arguments: dict[str, Any]) -> Any:
    """Make vLLM's configuration; reads the model's config files, starts nothing.

    Raises:
        RequestError: vLLM does not know an argument, or refuses a value.
    """
    # Imported here, because vLLM's environment must be set before.
    from vllm.engine.arg_utils import AsyncEngineArgs

    refuse_unknown(arguments, [field.name for field in dataclasses.fields(AsyncEngineArgs)])
    try:
        return AsyncEngineArgs(**arguments).create_engine_config()
    except ValueError as error:
        raise RequestError(f"vLLM refuses the settings of generation and model: {error}") from error


def refuse_unknown(arguments: Collection[str], known: list[str]) -> None:
    """Refuse engine arguments that vLLM does not know.

    Raises:
        RequestError: an argument is unknown; names the nearest ones.
    """
    for name in arguments:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=3) or ["none is near"]
            raise RequestError(
                f"generation.extra_engine_args: vLLM has no engine argument {name!r}; the "
                f"nearest: {', '.join(nearest)}"
            )
