"""DeepSpeed's configuration, made from ours, so that users never write one.

Plain dictionaries, without an import of DeepSpeed. Micro-batch size and accumulation steps are
always 1. DeepSpeed only reports them: the number of micro-batches differs from one optimiser step
to the next, and `TrainEngine` marks the last one itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_ray.config.deepspeed.extra import merged
from rlhf_ray.config.groups.training import RoleConfig, TrainingConfig

# DeepSpeed's names of number formats.
_FORMATS = {"float32": "fp32", "bfloat16": "bf16"}


def trained_config(settings: TrainingConfig, *, on_cuda: bool) -> dict[str, Any]:
    """DeepSpeed's configuration of a role with an optimizer.

    By default gradients are accumulated and summed over ranks in float32 whatever the dtype of the
    weights. DeepSpeed 0.19.8 cannot accumulate in float32 at stage 0 with bfloat16 weights, so that
    this combination runs as stage 1: the same update, with the optimizer states sharded.
    """
    bfloat16 = settings.dtype == "bfloat16"
    stage = max(settings.zero_stage, 1) if bfloat16 else settings.zero_stage
    zero = _zero_optimization(settings, stage, on_cuda=on_cuda)
    if settings.offload_optimizer and stage > 0:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_cuda}
    zero["reduce_bucket_size"] = settings.zero.reduce_bucket_elements
    zero["allgather_bucket_size"] = settings.zero.allgather_bucket_elements
    config = {
        **_common(settings),
        # At stage 0 `TrainEngine` clips: it needs the norm, which DeepSpeed does not give there.
        "gradient_clipping": settings.gradient_clip_norm if stage > 0 else 0.0,
        "data_types": {"grad_accum_dtype": _FORMATS[settings.zero.gradient_dtype]},
        "communication_data_type": _FORMATS[settings.zero.communication_dtype],
        # On a CPU torch's AdamW runs offloaded too: DeepSpeed's own would be compiled first.
        "zero_force_ds_cpu_optimizer": on_cuda,
        "zero_optimization": zero,
    }
    return merged(config, settings.extra_deepspeed_config)


def frozen_config(settings: RoleConfig, *, on_cuda: bool) -> dict[str, Any]:
    """DeepSpeed's configuration of sharded parameters without an optimizer (ZeRO-3)."""
    assert settings.zero_stage == 3, "only ZeRO-3 shards parameters, all that a frozen role has"
    config = {
        **_common(settings),
        "zero_optimization": _zero_optimization(settings, 3, on_cuda=on_cuda),
    }
    return merged(config, settings.extra_deepspeed_config)


def nodes_problem(nodes: Sequence[str], group_size: int) -> str:
    """Say which ranks of a group of hpZ are on different nodes; empty if there are none.

    Args:
        nodes: of all ranks, in their order. Groups are neighbouring ranks.
        group_size: `zero.hpz_partition_size`, a divisor of the number of ranks.
    """
    for first in range(0, len(nodes), group_size):
        names = list(dict.fromkeys(nodes[first : first + group_size]))
        if len(names) > 1:
            return (
                f"zero.hpz_partition_size={group_size}: ranks {first} to {first + group_size - 1} "
                f"are on the nodes {', '.join(names)}, and would gather weights between them; set "
                f"it to a number that divides the ranks of every node, or to 1"
            )
    return ""


def _common(settings: RoleConfig) -> dict[str, Any]:
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": settings.dtype == "bfloat16"},
    }
    if settings.tensor_parallel_size > 1:
        # The groups alone: the engines divide the module themselves, by `slice_module`.
        config["tensor_parallel"] = {"autotp_size": settings.tensor_parallel_size}
    return config


def _zero_optimization(settings: RoleConfig, stage: int, *, on_cuda: bool) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": stage,
        # A CPU has no second stream to overlap communication with.
        "overlap_comm": on_cuda,
    }
    if stage == 3:
        gathering = settings.zero
        zero |= {
            "zero_hpz_partition_size": gathering.hpz_partition_size,
            "stage3_prefetch_bucket_size": gathering.prefetch_elements,
            "stage3_max_live_parameters": gathering.max_live_elements,
            "stage3_max_reuse_distance": gathering.max_reuse_elements,
            "stage3_param_persistence_threshold": gathering.persistence_elements,
        }
    if settings.offload_parameters and stage == 3:
        zero["offload_param"] = {"device": "cpu", "pin_memory": on_cuda}
    return zero
