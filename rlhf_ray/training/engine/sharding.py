"""ZeRO-3 shards of a module, made one tensor at a time from the values of rank 0."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import deepspeed
import deepspeed.comm
import torch
from torch import Tensor, nn

from rlhf_ray.models.checks.finite import has_no_nan, is_finite, not_finite
from rlhf_ray.models.unloaded.parts import RealTensors, model_parts
from rlhf_ray.training.engine.deepspeed_config import nodes_problem
from rlhf_ray.training.engine.ranks import rank, reduce_over_ranks, training_device, world_size
from rlhf_ray.training.engine.shards import WeightBorrower, is_partitioned

# Makes the values of a part of a module on rank 0; see `model_parts`.
Fill = Callable[[Sequence[nn.Module]], None]

_MAX_NAMES = 3


def shard_module(
    module: nn.Module, config: dict[str, Any], *, dtype: torch.dtype, fill: Fill | None = None
) -> None:
    """Shard a module over all ranks, as ZeRO-3 keeps it; all ranks call it.

    `deepspeed.initialize` alone moves a whole module to the device of every rank before it shards
    it, so that a model larger than a device could never start. Here a device holds one whole
    tensor at a time, next to the shards of those before.

    Only rank 0 needs values. On the other ranks the module may be on the device "meta": then they
    read no file, and hold no whole model in host memory either.

    Args:
        module: the same structure on all ranks.
        config: DeepSpeed's configuration of the engine that will take the module.
        dtype: of all floating-point parameters afterwards; buffers keep theirs.
        fill: makes the values of a part on rank 0, just before it is sharded; for a module without
            values on any rank.

    Raises:
        ValueError: the ranks have different modules, weights are not finite, or the ranks of a
            group of hpZ are not on one node.
    """
    _check_nodes(config["zero_optimization"]["zero_hpz_partition_size"])
    _check_same_structure(module)
    sharder = _Sharder(config, dtype, names={one: name for name, one in module.named_modules()})
    for part in model_parts(module):
        if fill is not None and rank() == 0:
            fill(part)
        for one in part:
            sharder.take(one)
    sharder.check_finite()
    register_borrowed(module)


def register_borrowed(module: nn.Module) -> None:
    """Make ZeRO-3 gather the weights that modules borrow from others; see `WeightBorrower`."""
    for one in module.modules():
        if isinstance(one, WeightBorrower):
            for weight in one.borrowed_weights():
                deepspeed.zero.register_external_parameter(one, weight)


class _Sharder:
    def __init__(
        self, config: dict[str, Any], dtype: torch.dtype, *, names: dict[nn.Module, str]
    ) -> None:
        # Of an empty module: it prepares the process, and has nothing to shard yet.
        self._init: Any = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=config)
        self._dtype = dtype
        self._device = training_device()
        self._real = RealTensors(self._device)
        self._names = names
        self._not_finite: list[str] = []

    @torch.no_grad()
    def take(self, module: nn.Module) -> None:
        """Shard the module's own parameters, and copy its buffers from rank 0."""
        self._real.replace_in([module])
        for name, parameter in module._parameters.items():
            # One that is tied to an earlier parameter is sharded already.
            if parameter is not None and not is_partitioned(parameter):
                dtype = self._dtype if parameter.is_floating_point() else parameter.dtype
                parameter.data = parameter.data.to(self._device, dtype).contiguous()
                self._note(module, name, is_fine=rank() > 0 or is_finite(parameter))
                # Copies it from rank 0 and keeps this rank's part. deepspeed 0.19.8 has no public
                # method for a parameter that is not in a module of its own.
                self._init._convert_to_zero_parameters([parameter])
        for name, buffer in module._buffers.items():
            if buffer is not None:
                value = module._buffers[name] = self._from_first_rank(buffer)
                self._note(module, name, is_fine=rank() > 0 or has_no_nan(value))
        # Tables that a class keeps as plain attributes: they stay where the class has put them.
        for name, tensor in list(_plain_tensors(module)):
            copy = self._from_first_rank(tensor)
            vars(module)[name] = copy.cpu() if tensor.is_meta else tensor

    def check_finite(self) -> None:
        """Refuse, on all ranks, a model of which rank 0 has read weights that are not finite.

        Raises:
            ValueError: names the weights.
        """
        received = [self._not_finite]
        torch.distributed.broadcast_object_list(received, src=0)
        (names,) = received
        if names:
            raise ValueError(f"the model that rank 0 reads cannot be used: {not_finite(names)}")

    def _note(self, module: nn.Module, name: str, *, is_fine: bool) -> None:
        """Remember a weight that is not finite: a rank that raised here would leave the others."""
        if not is_fine:
            prefix = self._names[module]
            self._not_finite.append(f"{prefix}.{name}" if prefix else name)

    def _from_first_rank(self, tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            value = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
        else:
            value = tensor.to(self._device).contiguous()
        if value.numel():
            deepspeed.comm.broadcast(value.view(-1).view(torch.uint8), 0)
        return value


def _check_nodes(group_size: int) -> None:
    if group_size == 1:
        return
    nodes = [""] * world_size()
    torch.distributed.all_gather_object(nodes, socket.gethostname())
    if problem := nodes_problem(nodes, group_size):
        raise ValueError(problem)


def _check_same_structure(module: nn.Module) -> None:
    """Compare names, shapes and number formats with rank 0: else ranks would wait for ever."""
    mine = list(_structure(module))
    received = [mine]
    torch.distributed.broadcast_object_list(received, src=0)
    (first,) = received
    found = torch.tensor(float(first != mine), device=training_device())
    if float(reduce_over_ranks(found, maximum=True)):
        here = set(mine)
        different = sorted(here.symmetric_difference(first))[:_MAX_NAMES]
        example = f" ({'; '.join(different)})" if different else ""
        raise ValueError(
            f"not all ranks have the model that rank 0 reads{example}: are the files of the model "
            f"the same on every node?"
        )


def _structure(module: nn.Module) -> Iterator[str]:
    """A line for each tensor. Formats of parameters are left out: all get the same."""
    first_names: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        tied_to = first_names.setdefault(id(parameter), name)
        yield f"{name} {list(parameter.shape)}" + ("" if tied_to == name else f" is {tied_to}")
    for name, buffer in module.named_buffers(remove_duplicate=False):
        yield f"{name} {list(buffer.shape)} {buffer.dtype}"
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for name, tensor in _plain_tensors(owner):
            yield f"{prefix}.{name} {list(tensor.shape)} {tensor.dtype}"


def _plain_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that are neither parameters nor buffers, by name."""
    for name, value in sorted(vars(module).items()):
        if isinstance(value, Tensor):
            yield name, value
