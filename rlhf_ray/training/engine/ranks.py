"""This rank, the other ranks and the device. Needs a process group, but not DeepSpeed."""

from __future__ import annotations

import torch
from torch import Tensor


def world_size() -> int:
    return torch.distributed.get_world_size()


def rank() -> int:
    return torch.distributed.get_rank()


def reduce_over_ranks(values: Tensor, *, maximum: bool = False) -> Tensor:
    """Sum (or maximum) of a tensor over all ranks, in place; returns it."""
    operation = torch.distributed.ReduceOp.MAX if maximum else torch.distributed.ReduceOp.SUM
    torch.distributed.all_reduce(values, op=operation)
    return values


def largest_over_ranks(number: int, device: torch.device) -> int:
    """Maximum of a number over all ranks; the number itself without a process group."""
    if not torch.distributed.is_initialized() or world_size() == 1:
        return number
    return int(reduce_over_ranks(torch.tensor([number], device=device), maximum=True))


def training_device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
