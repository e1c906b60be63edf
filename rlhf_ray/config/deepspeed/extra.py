"""DeepSpeed settings that are passed on: which there are, and which this project sets itself.

The names are those of deepspeed 0.19.8. A test compares them with DeepSpeed's classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

ZERO = "zero_optimization"
_TYPES = "data_types"

# Keys that a user may set: at the top, and in the two groups where this project sets keys too.
ALLOWED: dict[str, tuple[str, ...]] = {
    "": (
        "aio",
        "comet",
        "comms_logger",
        "csv_monitor",
        "disable_allgather",
        "disable_python_gc",
        "dump_state",
        "flops_profiler",
        "log_level",
        "memory_breakdown",
        "steps_per_print",
        "tensorboard",
        "timers",
        "wall_clock_breakdown",
        "wandb",
        _TYPES,
        ZERO,
    ),
    ZERO: (
        "contiguous_gradients",
        "reduce_scatter",
        "use_multi_rank_bucket_allreduce",
        "allgather_partitions",
        "overlap_comm",
        "sub_group_size",
        "stage3_model_persistence_threshold",
        "stage3_module_granularity_threshold",
        "stage3_use_all_reduce_for_fetch_params",
        "stage3_allgather_sequential",
        "ignore_unused_parameters",
        "round_robin_gradients",
        "parameter_alignment",
        "zero_quantized_gradients",
        "memory_efficient_linear",
        "override_module_apply",
        "log_trace_cache_warnings",
        "enable_sanity_checks",
        "leaf_module",
    ),
    _TYPES: ("buffer_dtype", "keep_in_fp32_modules"),
}

_ADAM = "{group}.learning_rate, weight_decay, adam_beta1, adam_beta2 and adam_epsilon"
_MICRO_BATCH = "{group}.max_tokens_per_micro_batch"
# Keys that this project sets, and the setting to use instead.
OWNED: dict[str, str] = {
    "train_batch_size": "prompts_per_step and samples_per_prompt, or batch_size",
    "train_micro_batch_size_per_gpu": _MICRO_BATCH,
    "gradient_accumulation_steps": _MICRO_BATCH,
    "managed_gradient_accumulation": _MICRO_BATCH,
    "optimizer": _ADAM,
    "zero_allow_untested_optimizer": _ADAM,
    "zero_force_ds_cpu_optimizer": "{group}.offload_optimizer",
    "scheduler": "{group}.schedule and {group}.warmup_steps",
    "gradient_clipping": "{group}.gradient_clip_norm",
    "activation_checkpointing": "{group}.gradient_checkpointing",
    "communication_data_type": "{group}.zero.communication_dtype",
    "checkpoint": "the keys of checkpoint",
    "datastates_ckpt": "the keys of checkpoint",
    **dict.fromkeys(("bf16", "bfloat16", "fp16", "torch_autocast"), "{group}.dtype"),
    f"{_TYPES}.param_dtype": "{group}.dtype",
    f"{_TYPES}.grad_accum_dtype": "{group}.zero.gradient_dtype",
    f"{ZERO}.stage": "{group}.zero_stage",
    **dict.fromkeys(
        (f"{ZERO}.offload_param", f"{ZERO}.cpu_offload_param"), "{group}.offload_parameters"
    ),
    **dict.fromkeys(
        (
            f"{ZERO}.offload_optimizer",
            f"{ZERO}.cpu_offload",
            f"{ZERO}.cpu_offload_use_pin_memory",
        ),
        "{group}.offload_optimizer",
    ),
    "tensor_parallel": "{group}.tensor_parallel_size",
    f"{ZERO}.zero_hpz_partition_size": "{group}.zero.hpz_partition_size",
    f"{ZERO}.reduce_bucket_size": "{group}.zero.reduce_bucket_elements",
    f"{ZERO}.allgather_bucket_size": "{group}.zero.allgather_bucket_elements",
    f"{ZERO}.stage3_prefetch_bucket_size": "{group}.zero.prefetch_elements",
    f"{ZERO}.stage3_max_live_parameters": "{group}.zero.max_live_elements",
    f"{ZERO}.stage3_max_reuse_distance": "{group}.zero.max_reuse_elements",
    f"{ZERO}.stage3_param_persistence_threshold": "{group}.zero.persistence_elements",
}

_SUMMED = "gradients are summed over all ranks, by global counts"
_PARALLEL = "DeepSpeed is told of no other groups of ranks than those of tensor_parallel_size"
_DATA = "the data are not loaded by DeepSpeed"
_ROUNDED = "the role would compute with rounded weights, and publish and save others"
_SAVING = "models and checkpoints are not saved in this way"
# Keys that would break a role or do nothing, with the reason.
UNSUPPORTED: dict[str, str] = {
    "gradient_allreduce_op": _SUMMED,
    "gradient_predivide_factor": _SUMMED,
    "prescale_gradients": _SUMMED,
    "pipeline": _PARALLEL,
    "expert_parallel": _PARALLEL,
    "use_data_before_expert_parallelism": _PARALLEL,
    "sequence_parallel_size": _PARALLEL,
    "seq_parallel_communication_data_type": _PARALLEL,
    "hybrid_engine": "vLLM generates",
    "data_efficiency": _DATA,
    "dataloader_drop_last": _DATA,
    "vocabulary_size": "DeepSpeed only checks its factors with it",
    "autotuning": "it starts runs of its own",
    "compile": "the model is not compiled",
    "weight_quantization": _ROUNDED,
    f"{ZERO}.zero_quantized_weights": _ROUNDED,
    f"{ZERO}.zero_quantized_nontrainable_weights": _ROUNDED,
    f"{ZERO}.compute_grad_norm": "the norm is a metric, and clips the gradient",
    f"{ZERO}.zenflow": "it delays parts of an update",
    f"{ZERO}.save_muon_momentum_buffer_in_memory": "the optimizer is AdamW",
    f"{ZERO}.legacy_stage1": "DeepSpeed no longer has it",
    f"{ZERO}.elastic_checkpoint": _SAVING,
    f"{ZERO}.load_from_fp32_weights": _SAVING,
    f"{ZERO}.pipeline_loading_checkpoint": _SAVING,
    f"{ZERO}.stage3_gather_16bit_weights_on_model_save": _SAVING,
    f"{ZERO}.stage3_gather_fp16_weights_on_model_save": _SAVING,
}

# Second names that DeepSpeed accepts.
_ALIASES = {
    f"{ZERO}.{name}": f"{ZERO}.stage3_{name}"
    for name in (
        "prefetch_bucket_size",
        "param_persistence_threshold",
        "model_persistence_threshold",
        "max_live_parameters",
        "max_reuse_distance",
        "gather_16bit_weights_on_model_save",
        "module_granularity_threshold",
        "use_all_reduce_for_fetch_params",
        "allgather_sequential",
    )
}


def extra_problems(group: str, extra: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for every key of `extra_deepspeed_config` that cannot be passed on.

    Args:
        group: configuration group of the role.
    """
    for key, value in extra.items():
        if key not in (ZERO, _TYPES):
            yield from _key_problems(group, key)
        elif not isinstance(value, Mapping):
            yield (
                f"{group}.extra_deepspeed_config.{key}={value}: is a group of keys; set them one "
                f"by one, as in {group}.extra_deepspeed_config.{key}.{ALLOWED[key][0]}=..."
            )
        else:
            for name in value:
                yield from _key_problems(group, f"{key}.{name}")


def merged(config: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """DeepSpeed's configuration with the keys of `extra` added; groups are merged key by key."""
    result = dict(config)
    for key, value in extra.items():
        inner = result.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            result[key] = {**inner, **value}
        else:
            result[key] = value
    return result


def _key_problems(group: str, key: str) -> Iterator[str]:
    shown = f"{group}.extra_deepspeed_config.{key}"
    known = _ALIASES.get(key, key)
    section, _, name = known.rpartition(".")
    if known in OWNED:
        yield f"{shown}: is set by {OWNED[known].format(group=group)}; change that instead"
    elif known in UNSUPPORTED:
        yield f"{shown}: is not supported, because {UNSUPPORTED[known]}; remove it"
    elif name not in ALLOWED[section]:
        yield f"{shown}: DeepSpeed has no such key; {_nearest(section, name, group)}"


def _nearest(section: str, name: str, group: str) -> str:
    every = [*_names_in(section, OWNED), *_names_in(section, UNSUPPORTED), *ALLOWED[section]]
    near = difflib.get_close_matches(name, every, 1, 0.6)
    if not near:
        return f"it may have {', '.join(ALLOWED[section][:5])} and others, see docs/gpu.md"
    full = f"{section}.{near[0]}" if section else near[0]
    if full in OWNED:
        return f"did you mean {near[0]}? It is set by {OWNED[full].format(group=group)}"
    return f"did you mean {near[0]}?"


def _names_in(section: str, table: Mapping[str, str]) -> list[str]:
    return [key.rpartition(".")[2] for key in table if key.rpartition(".")[0] == section]
