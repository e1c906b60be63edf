"""DeepSpeed's engine over a module that the ranks share: in slices, in shards, or in both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from torch import nn

from rlhf_ray.config.groups.training import RoleConfig
from rlhf_ray.training.engine.sharding import Fill, register_borrowed, shard_module
from rlhf_ray.training.engine.slicing.autotp import slice_module
from rlhf_ray.training.engine.slicing.tensor_slice import TensorGroup

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def initialized(
    module: nn.Module,
    config: dict[str, Any],
    settings: RoleConfig,
    *,
    optimizer: Callable[[], torch.optim.Optimizer] | None = None,
    fill: Fill | None = None,
) -> tuple[Any, TensorGroup | None]:
    """Make DeepSpeed's engine; all ranks call it together.

    Args:
        module: see `sliced` and `shard_module`.
        config: DeepSpeed's configuration.
        optimizer: makes it, once the module has its final parameters.

    Returns:
        the engine, and this rank's place in its tensor group, if there is one.
    """
    group = sliced(module, settings)
    if settings.zero_stage == 3 and group is None:
        shard_module(module, config, dtype=DTYPES[settings.dtype], fill=fill)
    engine: Any = deepspeed.initialize(
        model=module,
        optimizer=None if optimizer is None else optimizer(),
        config=config,
        dist_init_required=False,
    )[0]
    if group is not None:
        # deepspeed 0.19.8, `DeepSpeedEngine._configure_tensor_parallel_states`: it compares the
        # first inputs of the group with ==, which fails for tensors in a dataclass. The driver
        # gives the ranks of a group the same samples.
        engine.first_dataloader_check.remove()
        if settings.zero_stage == 3:
            register_borrowed(module)
    return engine, group


def sliced(module: nn.Module, settings: RoleConfig) -> TensorGroup | None:
    """Divide the matrices of a module over the ranks of a group, if the settings ask for it.

    Args:
        module: whole on every rank.
    """
    if settings.tensor_parallel_size == 1:
        return None
    return slice_module(module, settings.tensor_parallel_size)
