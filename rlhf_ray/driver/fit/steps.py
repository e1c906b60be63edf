"""The samples of each optimiser step: rows in a seeded order, spread over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rlhf_ray.data.prompts.order import RowOrder

T = TypeVar("T")
# Maps the rows of one step to the samples of every rank.
Spread = Callable[[Sequence[T]], Sequence[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSamples:
    """The samples of one optimiser step.

    Attributes:
        per_rank: samples of each rank.
        epochs: passes over all rows, in fractions, when this step is done.
    """

    per_rank: tuple[Any, ...]
    epochs: float


class FitSteps(Generic[T]):
    """The steps of a run, one after the other.

    An epoch may end inside a step, which then goes on with the next epoch. The last step takes
    the samples that are left.

    Args:
        order: order of `rows`.
        samples_per_step: samples over all ranks.
        max_steps: upper bound of the number of steps; None goes through all epochs.
    """

    def __init__(
        self,
        rows: Sequence[T],
        *,
        order: RowOrder,
        spread: Spread[T],
        samples_per_step: int,
        num_epochs: int,
        max_steps: int | None,
    ) -> None:
        self._rows = rows
        self._order = order
        self._spread = spread
        self._samples_per_step = samples_per_step
        self._num_samples = num_epochs * len(rows)
        in_all = count_steps(len(rows), samples_per_step, num_epochs)
        self.num_steps = in_all if max_steps is None else min(in_all, max_steps)

    def next(self, step: int) -> StepSamples:
        """The samples of step `step`, counted from 0. Call it for every step, in order."""
        first = step * self._samples_per_step
        last = min(first + self._samples_per_step, self._num_samples)
        places = [self._order.next() for _ in range(first, last)]
        assert places[0].index == first, f"step {step} does not follow the one before"
        per_rank = self._spread([self._rows[place.row] for place in places])
        return StepSamples(per_rank=tuple(per_rank), epochs=last / len(self._rows))

    def state_dict(self) -> dict[str, Any]:
        """The position in the rows; plain values."""
        return self._order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last step before `state_dict`.

        Raises:
            DataError: the state has other rows, another seed or another order.
        """
        self._order.load_state_dict(state)


def count_steps(num_rows: int, samples_per_step: int, num_epochs: int) -> int:
    """Number of optimiser steps of all epochs."""
    return -(-num_epochs * num_rows // samples_per_step)
