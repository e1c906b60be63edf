"""How the samples of an optimiser step are spread over the ranks of a role."""

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
    """Over how many ranks a role spreads its work, and how much one forward pass may hold.

    Attributes:
        layout: what a forward pass holds; see `plan_micro_batches`.
    """

    num_ranks: int
    max_tokens_per_micro_batch: int
    layout: str = "padded"


def rank_plan(settings: RoleConfig) -> RankPlan:
    """That of a configured role."""
    return RankPlan(
        num_ranks=settings.num_ranks,
        max_tokens_per_micro_batch=settings.max_tokens_per_micro_batch,
        layout=settings.layout,
    )


def plan_rows(
    token_ids: Tensor, lengths: Tensor, loss_mask: Tensor, samples: Sequence[int], plan: RankPlan
) -> list[list[list[int]]]:
    """Per rank, per micro-batch, places in `samples`; see `plan_micro_batches`.

    Args:
        token_ids [N] int64, lengths [S] int64, loss_mask [N] bool: ragged.
        samples: those of the S that are planned.

    Raises:
        ValueError: a sample alone is over the budget of a forward pass.
    """
    shapes: list[SampleShape] = []
    if plan.layout != "padded":
        shapes = sample_shapes(token_ids, find_targets(lengths, loss_mask, samples))
    return plan_micro_batches(
        lengths[torch.tensor(samples, dtype=torch.int64)].tolist(),
        plan.num_ranks,
        plan.max_tokens_per_micro_batch,
        layout=plan.layout,
        shapes=shapes,
    )


def token_positions(spans: Sequence[tuple[int, int]]) -> Tensor:
    """Positions [M] int64 of all tokens of (start, length) spans, in their order."""
    pieces = [torch.arange(start, start + length) for start, length in spans]
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)


def consecutive_rows(counts: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Rows 0, 1, 2, ... cut into pieces of these sizes."""
    rows = iter(range(sum(counts)))
    return tuple(tuple(next(rows) for _ in range(count)) for count in counts)
