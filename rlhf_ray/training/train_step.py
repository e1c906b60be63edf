"""Optimiser steps over micro-batches, the same for every trained role."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from rlhf_ray.batching.layout import MicroBatch
from rlhf_ray.batching.row_layout import RowLayout
from rlhf_ray.objectives.policy import Objective
from rlhf_ray.training.engine.deepspeed_engine import TrainEngine
from rlhf_ray.training.engine.ranks import reduce_over_ranks, training_device


class RaggedSamples(Protocol):
    """Fields shared by all samples: `records.Experience`, `supervised.SupervisedSamples`, ..."""

    @property
    def token_ids(self) -> Tensor: ...
    @property
    def lengths(self) -> Tensor: ...
    @property
    def loss_mask(self) -> Tensor: ...
    @property
    def support_token_ids(self) -> Tensor | None: ...
    @property
    def micro_batches(self) -> tuple[tuple[int, ...], ...]: ...


Samples = TypeVar("Samples", bound=RaggedSamples)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part(Generic[Samples]):
    """Samples of one kind in an optimiser step, with their objective.

    Attributes:
        samples: a dataclass; its tensors are copied to this rank's device.
        compute: maps the samples on the device and one of their micro-batches to the objective.
    """

    samples: Samples
    compute: Callable[[Samples, MicroBatch], Objective]


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateResult:
    """Metrics of an update, the same on every rank.

    Attributes:
        means: metric name to its mean over the optimiser steps that measured it.
        maxima: metric name to its maximum.
        grad_norm: mean over the optimiser steps.
        learning_rate: learning rate of the last optimiser step.
    """

    means: dict[str, float]
    maxima: dict[str, float]
    grad_norm: float
    learning_rate: float


def run_update(
    engine: TrainEngine, steps: Sequence[Sequence[Part[Any]]], layout: RowLayout
) -> UpdateResult:
    """Take an optimiser step for each entry of `steps`; all ranks call it with the same number.

    The gradients of the parts of a step add up, and so do their metrics of the same name.

    Raises:
        ValueError: ranks have different numbers of micro-batches, which would deadlock.
    """
    assert steps, "an update needs at least one optimiser step"
    _check_same_on_ranks([sum(len(part.samples.micro_batches) for part in step) for step in steps])
    per_step: list[dict[str, Tensor]] = []
    maxima: dict[str, Tensor] = {}
    results = []
    for step in steps:
        sums: dict[str, Tensor] = {}
        last = step[-1]
        for part in step:
            # DeepSpeed reduces gradients over ranks at the last micro-batch of a step. That is the
            # last one of the last part, not of every part.
            final = len(part.samples.micro_batches) - 1 if part is last else -1
            # One micro-batch at a time: a list would hold the graphs of all of them in memory.
            for index, objective in enumerate(_objectives(part, layout)):
                engine.backward(objective.loss, is_last=index == final)
                _add(sums, objective.sums)
                _keep_largest(maxima, objective.maxima)
        results.append(engine.step())
        per_step.append(sums)
    return UpdateResult(
        means=_means(per_step, copies=layout.ranks_per_sample),
        maxima=_reduced(maxima, maximum=True),
        grad_norm=sum(result.grad_norm for result in results) / len(results),
        learning_rate=results[-1].learning_rate,
    )


@torch.no_grad()
def run_evaluation(part: Part[Any], layout: RowLayout) -> dict[str, float]:
    """Measure samples without learning from them; all ranks together.

    Raises:
        ValueError: ranks have different numbers of micro-batches, which would deadlock.
    """
    _check_same_on_ranks([len(part.samples.micro_batches)])
    sums: dict[str, Tensor] = {}
    for objective in _objectives(part, layout):
        _add(sums, objective.sums)
    return _means([sums], copies=layout.ranks_per_sample)


def _objectives(part: Part[Any], layout: RowLayout) -> Iterator[Objective]:
    """Yield the objective of every micro-batch."""
    samples = _to_device(part.samples)
    for rows in samples.micro_batches:
        batch = layout.lay_out(
            samples.token_ids, samples.lengths, samples.loss_mask, samples.support_token_ids, rows
        )
        yield part.compute(samples, batch)


def _add(sums: dict[str, Tensor], shares: Mapping[str, Tensor]) -> None:
    """Add to `sums`, in float64 and on the device: no micro-batch waits for a number."""
    for name, value in shares.items():
        sums[name] = sums[name] + value.double() if name in sums else value.double()


def _keep_largest(maxima: dict[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for name, value in found.items():
        maxima[name] = torch.maximum(maxima.get(name, value), value)


def _check_same_on_ranks(num_micro_batches: list[int]) -> None:
    """Check that ranks agree: others would wait for ever, or reduce gradients of unequal steps."""
    assert min(num_micro_batches) > 0, (
        f"an optimiser step without a micro-batch: {num_micro_batches}"
    )
    _check_agreement([len(num_micro_batches)], "optimiser steps")
    _check_agreement(num_micro_batches, "micro-batches per optimiser step")


def _check_agreement(counts: list[int], what: str) -> None:
    """Check that counts are equal on all ranks, by their maximum and minimum."""
    # The number of entries is checked before the entries: tensors of unequal length cannot be
    # reduced. The maximum of the negatives is the minimum, so one collective operation does both.
    signed = torch.tensor([*counts, *(-count for count in counts)], device=training_device())
    most, least = reduce_over_ranks(signed, maximum=True).chunk(2)
    if not torch.equal(most, -least):
        raise ValueError(
            f"ranks have different numbers of {what}: between {(-least).tolist()} and "
            f"{most.tolist()}"
        )


def _to_device(samples: Any) -> Any:
    device = training_device()
    tensors = {
        field.name: value.to(device)
        for field in dataclasses.fields(samples)
        if isinstance(value := getattr(samples, field.name), Tensor)
    }
    return dataclasses.replace(samples, **tensors)


def _means(per_step: list[dict[str, Tensor]], *, copies: int) -> dict[str, float]:
    """Mean over optimiser steps, summed over ranks.

    A metric of a rank is its share of the global mean, so the shares are summed, not averaged.

    Args:
        copies: ranks that compute the same samples together and have the same shares.
    """
    names = sorted({name for sums in per_step for name in sums})
    shares = {}
    for name in names:
        measured = [sums[name] for sums in per_step if name in sums]
        shares[name] = torch.stack(measured).mean() / copies
    return _reduced(shares, maximum=False)


def _reduced(values: dict[str, Tensor], *, maximum: bool) -> dict[str, float]:
    """Reduce all metrics over ranks in one collective operation; all ranks have the same names."""
    if not values:
        return {}
    # In one order on all ranks: only the numbers are sent.
    names = sorted(values)
    stacked = torch.stack([values[name].double() for name in names])
    return dict(zip(names, reduce_over_ranks(stacked, maximum=maximum).tolist(), strict=True))
