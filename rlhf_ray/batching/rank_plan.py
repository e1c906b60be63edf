"""Distribution of the samples of an optimiser step over the ranks of a role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.batching.layout import find_targets
from rlhf_ray.batching.layout_cost import SampleShape
from rlhf_ray.batching.micro_batches import plan_micro_batches
from rlhf_ray.batching.packing import sample_shapes
from rlhf_ray.config.groups.training import RoleConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RankPlan:
    """Number of ranks of a role, and size of its forward passes.

    Attributes:
        num_ranks: ranks that get different samples. With sequence parallelism these are the groups
            of ranks: all ranks of a group get the same samples.
        max_tokens_per_micro_batch: of one forward pass on one rank.
        layout: layout that the size is measured in; see `plan_micro_batches`.
    """

    num_ranks: int
    max_tokens_per_micro_batch: int
    layout: str = "padded"
    sequence_parallel_size: int = 1


def rank_plan(settings: RoleConfig) -> RankPlan:
    """Build the plan from a role's settings."""
    return RankPlan(
        num_ranks=settings.num_sample_groups,
        max_tokens_per_micro_batch=settings.max_tokens_per_micro_batch,
        layout=settings.usable_layout,
        sequence_parallel_size=settings.sequence_parallel_size,
    )


def plan_rows(
    token_ids: Tensor, lengths: Tensor, loss_mask: Tensor, samples: Sequence[int], plan: RankPlan
) -> list[list[list[int]]]:
    """Plan samples: per rank and micro-batch, places in `samples`; see `plan_micro_batches`.

    Args:
        token_ids [N] int64, lengths [S] int64, loss_mask [N] bool: ragged.
        samples: numbers of the samples to plan.

    Raises:
        ValueError: a sample alone is over the budget of a forward pass.
    """
    shapes: list[SampleShape] = []
    if plan.layout in ("packed", "auto"):
        shapes = sample_shapes(token_ids, find_targets(lengths, loss_mask, samples))
    return plan_micro_batches(
        lengths[torch.tensor(samples, dtype=torch.int64)].tolist(),
        plan.num_ranks,
        plan.max_tokens_per_micro_batch,
        layout=plan.layout,
        shapes=shapes,
        ranks_per_sample=plan.sequence_parallel_size,
    )


def token_positions(spans: Sequence[tuple[int, int]]) -> Tensor:
    """Concatenate the token positions of (start, length) spans, [M] int64."""
    pieces = [torch.arange(start, start + length) for start, length in spans]
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)


def consecutive_rows(counts: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Cut rows 0, 1, 2, ... into pieces of these sizes."""
    rows = iter(range(sum(counts)))
    return tuple(tuple(next(rows) for _ in range(count)) for count in counts)
