"""Division of a model's matrices over the ranks of a group, by DeepSpeed AutoTP.

Shoeybi et al. 2019, arXiv:1909.08053. The matrices that open a block (queries, keys, values, gate,
up) are divided by rows and those that close it (output, down) by columns, so that a block
communicates once, by a sum over the ranks. The model's own plan in transformers says which those
are. All other weights, with the embedding and the output head among them, are whole on every rank:
the head then computes as it does on one rank, and tied weights stay tied.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from deepspeed import set_autotp_mode
from deepspeed.module_inject.auto_tp import AutoTP
from deepspeed.module_inject.autotp_config import AutoTPConfig, PartitionType, TPLayerSpec
from deepspeed.utils import groups
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import PreTrainedModel

from rlhf_ray.models.checks.tensor_plan import Style, tensor_plan
from rlhf_ray.training.engine.ranks import rank, world_size
from rlhf_ray.training.engine.slicing.tensor_slice import TensorGroup, mark_slices

_PARTITIONS = {Style.ROWS: PartitionType.COLUMN, Style.COLUMNS: PartitionType.ROW}


def tensor_group(size: int) -> TensorGroup:
    """Make the groups of neighbouring ranks, or find them; all ranks call it together.

    They are DeepSpeed's, so that its engine takes the same ones.

    Args:
        size: ranks of a group; divides the number of ranks.
    """
    assert world_size() % size == 0, f"groups of {size} among {world_size()} ranks"
    groups._init_tp_mesh_device(tensor_model_parallel_size=size)
    own: Any = groups.get_tensor_model_parallel_group()
    data: Any = groups.get_data_parallel_group()
    return TensorGroup(
        size=size,
        index=rank() % size,
        group=own,
        data_group=data,
        data_size=world_size() // size,
        data_index=rank() // size,
    )


def forget_groups() -> None:
    """Let the next role of this process make groups of its own.

    deepspeed 0.19.8 keeps them in the module, and would take those of a closed process group.
    """
    groups._TENSOR_MODEL_PARALLEL_GROUP = None
    groups._MODEL_PARALLEL_GROUP = None
    groups._DATA_PARALLEL_GROUP = None
    groups.mpu = None


def slice_module(module: nn.Module, size: int) -> TensorGroup:
    """Keep this rank's slices of a module, in place; all ranks of the role call it together.

    Slices are moved to the training device one by one. Every parameter is then marked with its
    slice; see `slice_of`.

    Args:
        module: with one model of transformers, whole on every rank and not sharded.
        size: ranks of a group; `models.checks.tensor_plan` has checked that it divides the model.
    """
    group = tensor_group(size)
    model = next(m for m in module.modules() if isinstance(m, PreTrainedModel))
    plan = tensor_plan(model.config)
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    # Else it makes layers for inference, without a backward pass.
    set_autotp_mode(training=True)
    specs = [
        TPLayerSpec(patterns=[f"{_pattern(name)}\\.weight$"], partition_type=_PARTITIONS[style])
        for name, style in plan.items()
        if style in _PARTITIONS
    ]
    # As deepspeed 0.19.8 does it in `DeepSpeedEngine._apply_autotp_partitioning`: there it would
    # be too late to mark the slices before ZeRO divides them.
    autotp = AutoTP(
        module=module,
        all_reduce_linears=(),
        prefix="",
        state_dict=None,
        linear_layer_setting=(nn.Linear, nn.Embedding),
        orig_layer_impl=None,
        partition_config=AutoTPConfig(tp_size=size, layer_specs=specs, use_default_specs=False),
        training_mode=True,
    )
    autotp.set_tensor_parallel_config(size, group.group)
    autotp.update_linear_policies()
    autotp._replace_module(module)
    divided: Any = module
    divided.ds_autotp_parsed = True
    mark_slices(module, group, shapes)
    summed = [_pattern(name) for name, style in plan.items() if style is Style.SUMMED]
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and any(re.match(rf"{p}\.", name) for p in summed):
            _sum_gradient(parameter, group.group)
    return group


def _sum_gradient(parameter: Tensor, group: ProcessGroup) -> None:
    """Sum the gradient of a whole weight that works on the heads of this rank alone (a norm)."""

    def summed(gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        torch.distributed.all_reduce(gradient, group=group)
        return gradient

    parameter.register_hook(summed)


def _pattern(name: str) -> str:
    """The regular expression of a name in a plan, at any place in the module."""
    return r"(?:.*\.)?" + re.escape(name).replace(r"\*", r"\d+")
