"""DeepSpeed's configuration, made from ours, so that users never write one.

Plain dictionaries, without an import of DeepSpeed. Micro-batch size and accumulation steps are
always 1. DeepSpeed only reports them: the number of micro-batches differs from one optimiser step
to the next, and `TrainEngine` marks the last one itself.
"""

from __future__ import annotations

from typing import Any

from rlhf_ray.config.groups.training import RoleConfig, TrainingConfig


def trained_config(settings: TrainingConfig, *, on_cuda: bool) -> dict[str, Any]:
    """DeepSpeed's configuration of a role with an optimizer.

    Gradients are accumulated and summed over ranks in float32 whatever the dtype of the weights.
    DeepSpeed 0.19.8 cannot accumulate in float32 at stage 0 with bfloat16 weights, so that
    combination runs as stage 1: the same update, with the optimizer states sharded.
    """
    bfloat16 = settings.dtype == "bfloat16"
    stage = max(settings.zero_stage, 1) if bfloat16 else settings.zero_stage
    zero = _zero_optimization(settings, stage, on_cuda=on_cuda)
    if settings.offload_optimizer and stage > 0:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_cuda}
    return {
        **_common(bfloat16),
        # At stage 0 `TrainEngine` clips: it needs the norm, which DeepSpeed does not give there.
        "gradient_clipping": settings.gradient_clip_norm if stage > 0 else 0.0,
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        # On a CPU torch's AdamW runs offloaded too: DeepSpeed's own would be compiled first.
        "zero_force_ds_cpu_optimizer": on_cuda,
        "zero_optimization": zero,
    }


def frozen_config(settings: RoleConfig, *, on_cuda: bool) -> dict[str, Any]:
    """DeepSpeed's configuration of sharded parameters without an optimizer (ZeRO-3)."""
    assert settings.zero_stage == 3, "only ZeRO-3 shards parameters, all that a frozen role has"
    return {
        **_common(settings.dtype == "bfloat16"),
        "zero_optimization": _zero_optimization(settings, 3, on_cuda=on_cuda),
    }


def _common(bfloat16: bool) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": bfloat16},
    }


def _zero_optimization(settings: RoleConfig, stage: int, *, on_cuda: bool) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": stage,
        # A CPU has no second stream to overlap communication with.
        "overlap_comm": on_cuda,
    }
    if settings.offload_parameters and stage == 3:
        zero["offload_param"] = {"device": "cpu", "pin_memory": on_cuda}
    return zero
