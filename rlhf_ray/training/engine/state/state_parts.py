"""This rank's parts of what a checkpoint holds: weights, moments of the optimizer, buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_ray.checkpoint_files.slice_index import SavedTensor
from rlhf_ray.training.engine.ranks import rank, world_size
from rlhf_ray.training.engine.shards import (
    distinct_tensors,
    is_partitioned,
    is_spread,
    optimizer_place,
    release_gathered,
    slice_shape,
    weight_shard,
)
from rlhf_ray.training.engine.slicing.tensor_slice import (
    TensorSlice,
    name_in_checkpoint,
    slice_of,
)

WEIGHT = "weight"
# The states of AdamW, of torch and of DeepSpeed.
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True, slots=True)
class StatePart:
    """A slice of a flattened tensor, with all values that a checkpoint has of it.

    Attributes:
        shape: of the whole tensor, or of this rank's slice in a tensor group.
        start: index of the first element in the flattened tensor.
        values: kind to a view [n]; writing to it changes the state.
        step: see `SavedTensor`.
        is_shared: all ranks hold the same, or all that have the same slice in a tensor group.
        checksum: of a part without values, the sum over them; see `frozen_weights`.
        part: the slice in a tensor group; None without groups.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    values: Mapping[str, Tensor]
    step: int | None = None
    is_shared: bool = False
    checksum: int | None = None
    part: TensorSlice | None = None

    @property
    def length(self) -> int:
        return self.values[WEIGHT].numel() if self.values else 0

    def narrowed(self, start: int, length: int) -> StatePart:
        """The elements from `start` of this part on."""
        values = {kind: value.narrow(0, start, length) for kind, value in self.values.items()}
        return replace(self, start=self.start + start, values=values)

    def copied(self) -> StatePart:
        """The part in host memory, where later steps do not change it."""
        values = {kind: value.detach().to("cpu", copy=True) for kind, value in self.values.items()}
        return replace(self, values=values)


def parts_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[StatePart]:
    """All parts that this rank holds: trained weights in float32 with their moments, and the rest.

    Args:
        module: of a DeepSpeed engine.
        optimizer: the one that DeepSpeed calls.
    """
    for name, tensor in distinct_tensors(module).items():
        if not tensor.requires_grad:
            yield plain_part(name, tensor)
            continue
        place = optimizer_place(tensor, optimizer)
        if place is None:
            continue
        # With an offloaded optimizer on the host, which a view of it does not change.
        state: Any = optimizer.state.get(place.flat, {})
        values = {WEIGHT: place.of(place.flat)}
        values |= {kind: place.of(state[kind]) for kind in MOMENTS if kind in state}
        yield StatePart(
            name=name_in_checkpoint(name, tensor),
            shape=slice_shape(tensor),
            start=place.start,
            values=values,
            step=int(state.get("step", 0)),
            is_shared=not is_spread(tensor),
            part=slice_of(tensor),
        )


def plain_part(name: str, tensor: Tensor, values: Tensor | None = None) -> StatePart:
    """The part of a weight that no optimizer moves, or of a buffer.

    Args:
        values [n]: take these in place of the weight's own.
    """
    shard = weight_shard(tensor)
    return StatePart(
        name=name_in_checkpoint(name, tensor),
        shape=shard.shape,
        start=shard.start,
        values={WEIGHT: shard.values if values is None else values},
        is_shared=not is_partitioned(tensor),
        part=slice_of(tensor),
    )


def own_share(part: StatePart) -> StatePart:
    """The part that this rank writes: of what several ranks hold, an equal share."""
    place, num_holders = _holders(part)
    share = -(-part.length // num_holders)
    start = min(part.length, place * share)
    return part.narrowed(start, min(share, part.length - start))


def _holders(part: StatePart) -> tuple[int, int]:
    """This rank's place among the ranks that hold the part, and their number."""
    held = part.part
    if held is None or (held.dim is None and part.is_shared):
        return (rank(), world_size()) if part.is_shared else (0, 1)
    group = held.group
    if held.dim is None:
        # ZeRO has divided it over data-parallel ranks, in the same way for every rank of a group.
        return group.index, group.size
    return (group.data_index, group.data_size) if part.is_shared else (0, 1)


def prepare_moments(
    module: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, SavedTensor]
) -> None:
    """Make the optimizer's states as they are after the steps of a checkpoint; values come later.

    Raises:
        ValueError: the optimizer keeps weights together here that have made unequal numbers of
            steps.
    """
    steps: dict[Tensor, dict[str, int]] = {}
    for name, tensor in distinct_tensors(module).items():
        place = optimizer_place(tensor, optimizer) if tensor.requires_grad else None
        name = name_in_checkpoint(name, tensor)
        if place is not None and name in saved:
            steps.setdefault(place.flat, {})[name] = saved[name].step or 0
    for flat, by_name in steps.items():
        # A weight that was never moved has moments of 0, which any number of steps leaves as
        # they are.
        moved = {step: name for name, step in by_name.items() if step}
        if len(moved) > 1:
            examples = ", ".join(f"{name} {step}" for step, name in sorted(moved.items())[:3])
            raise ValueError(
                f"the weights of the checkpoint have made unequal numbers of optimiser steps "
                f"({examples}), and the optimizer counts them together here: resume with the "
                f"zero_stage and num_ranks of the checkpoint"
            )
        _set_step(optimizer, flat, next(iter(moved), 0))


@torch.no_grad()
def round_into_weights(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Copy the optimizer's float32 weights into the sharded weights that compute (ZeRO-3)."""
    for tensor in distinct_tensors(module).values():
        if is_partitioned(tensor):
            release_gathered(tensor)
            place = optimizer_place(tensor, optimizer) if tensor.requires_grad else None
            if place is not None:
                weight_shard(tensor).values.copy_(place.of(place.flat))


def _set_step(optimizer: torch.optim.Optimizer, flat: Tensor, step: int) -> None:
    states: Any = optimizer.state
    if not step:
        states.pop(flat, None)
        return
    state = states.setdefault(flat, {})
    for kind in MOMENTS:
        if kind in state:
            state[kind].zero_()
        else:
            state[kind] = torch.zeros_like(flat.data)
    if not isinstance(optimizer, torch.optim.AdamW):
        state["step"] = step  # DeepSpeedCPUAdam.
        return
    # As `torch.optim.adam` makes it: on the device where a kernel reads it there.
    group = next(g for g in optimizer.param_groups)
    on_device = group.get("fused") or group.get("capturable")
    device = flat.device if on_device else torch.device("cpu")
    state["step"] = torch.tensor(float(step), dtype=torch.float32, device=device)
