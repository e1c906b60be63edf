"""The optimizer of a trained engine."""

from __future__ import annotations

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch import nn

from rlhf_ray.config.groups.training import TrainingConfig
from rlhf_ray.training.engine.shards import whole_shape


def adamw(module: nn.Module, settings: TrainingConfig, *, on_cuda: bool) -> torch.optim.Optimizer:
    """AdamW of the trained parameters, with weight decay on matrices only (no bias, no norm)."""
    # By the shape of the whole tensor: a shard of a matrix is a vector, and would get no decay.
    trained = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in trained if len(whole_shape(p)) > 1]
    vectors = [p for p in trained if len(whole_shape(p)) <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    common = {
        "lr": settings.peak_learning_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_epsilon,
    }
    groups = [group for group in groups if group["params"]]
    if on_cuda and settings.offload_optimizer:
        return DeepSpeedCPUAdam(groups, adamw_mode=True, **common)
    # On a CPU one fused kernel replaces a dozen. On a GPU torch chooses for DeepSpeed's shards.
    return torch.optim.AdamW(groups, **common, fused=None if on_cuda else True)
