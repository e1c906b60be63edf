"""Optimiser steps over micro-batches, alike for every trained role."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.records import Experience
from rlhf_ray.training.engine import TrainEngine
from rlhf_ray.training.layout import MicroBatch
from rlhf_ray.training.objective import Objective
from rlhf_ray.training.ranks import reduce_over_ranks, training_device
from rlhf_ray.training.row_layout import RowLayout

# (experience, micro-batch, number of the optimiser step in this update) to its objective.
ComputeObjective = Callable[[Experience, MicroBatch, int], Objective]


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateResult:
    """What an update measured, the same on every rank.

    Attributes:
        means: metric name to its mean over the optimiser steps in which it was measured.
        maxima: metric name to its maximum.
        grad_norm: mean over the optimiser steps.
        learning_rate: of the last one.
        num_tokens: sampled tokens that were trained on, counted once per optimiser step.
    """

    means: dict[str, float]
    maxima: dict[str, float]
    grad_norm: float
    learning_rate: float
    num_tokens: int


def run_update(
    engine: TrainEngine,
    experiences: Sequence[Experience],
    compute: ComputeObjective,
    layout: RowLayout,
) -> UpdateResult:
    """One optimiser step for each experience; all ranks call it with as many.

    Raises:
        ValueError: ranks have different numbers of micro-batches, which would deadlock.
    """
    assert experiences, "an update needs at least one experience"
    _check_same_on_ranks([len(experience.micro_batches) for experience in experiences])
    per_step: list[dict[str, Tensor]] = []
    maxima: dict[str, Tensor] = {}
    results = []
    for number, experience in enumerate(experiences):
        on_device = _to_device(experience)
        sums: dict[str, Tensor] = {}
        last = len(on_device.micro_batches) - 1
        for index, rows in enumerate(on_device.micro_batches):
            batch = layout.lay_out(
                on_device.token_ids,
                on_device.lengths,
                on_device.loss_mask,
                on_device.kept_token_ids,
                rows,
            )
            objective = compute(on_device, batch, number)
            engine.backward(objective.loss, is_last=index == last)
            for name, value in objective.sums.items():
                sums[name] = sums[name] + value.double() if name in sums else value.double()
            for name, value in objective.maxima.items():
                largest = maxima.get(name, value)
                maxima[name] = torch.maximum(largest, value)
        results.append(engine.step())
        per_step.append(sums)
    return UpdateResult(
        means=_means(per_step),
        maxima=_reduced(maxima, maximum=True),
        grad_norm=sum(result.grad_norm for result in results) / len(results),
        learning_rate=results[-1].learning_rate,
        num_tokens=sum(experience.num_loss_tokens for experience in experiences),
    )


def _check_same_on_ranks(num_micro_batches: list[int]) -> None:
    """Ranks that differ would wait for each other without end, or mix up their gradients."""
    assert min(num_micro_batches) > 0, (
        f"an optimiser step without a micro-batch: {num_micro_batches}"
    )
    _check_agreement([len(num_micro_batches)], "optimiser steps")
    _check_agreement(num_micro_batches, "micro-batches per optimiser step")


def _check_agreement(counts: list[int], what: str) -> None:
    """Maximum of the counts and of their negatives over ranks: maximum and minimum must agree."""
    signed = torch.tensor([*counts, *(-count for count in counts)], device=training_device())
    most, least = reduce_over_ranks(signed, maximum=True).chunk(2)
    if not torch.equal(most, -least):
        raise ValueError(
            f"ranks have different numbers of {what}: between {(-least).tolist()} and "
            f"{most.tolist()}"
        )


def _to_device(experience: Experience) -> Experience:
    device = training_device()
    moved = {
        field.name: value.to(device)
        for field in dataclasses.fields(experience)
        if isinstance(value := getattr(experience, field.name), Tensor)
    }
    return dataclasses.replace(experience, **moved)


def _means(per_step: list[dict[str, Tensor]]) -> dict[str, float]:
    """The shares of all ranks summed, then the mean over optimiser steps."""
    names = sorted({name for sums in per_step for name in sums})
    averaged = {}
    for name in names:
        measured = [sums[name] for sums in per_step if name in sums]
        averaged[name] = torch.stack(measured).mean()
    return _reduced(averaged, maximum=False)


def _reduced(values: dict[str, Tensor], *, maximum: bool) -> dict[str, float]:
    """Every rank has the same names; one collective operation for all of them."""
    if not values:
        return {}
    names = sorted(values)
    stacked = torch.stack([values[name].double() for name in names])
    return dict(zip(names, reduce_over_ranks(stacked, maximum=maximum).tolist(), strict=True))
