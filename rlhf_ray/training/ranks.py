"""What a rank knows of the others, and of its device. Needs a process group, and no DeepSpeed."""

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


def training_device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
