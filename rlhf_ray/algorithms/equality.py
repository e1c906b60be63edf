"""Equality of rewards and advantages, by a tolerance relative to their size."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

# One bfloat16 ulp relative to the smallest number of its binade. A reward model that computes in
# bfloat16 gives answers of the same quality rewards that are this far apart.
BFLOAT16_ULP = 2.0**-7
# Sums of weighted parts differ by some ulps of float64 with the order of the terms.
ROUNDING = 1e-9


def are_equal(values: Tensor | Sequence[float], tolerance: float = BFLOAT16_ULP) -> bool:
    """Whether no two of the values differ, up to a tolerance relative to the largest of them.

        max(values) - min(values) <= max(tolerance, ROUNDING) * max(|values|)

    An advantage that is divided by a deviation magnifies every difference to the size of one, also
    a difference of rounding.

    Args:
        values [n]: no NaN. tolerance: at least 0; below `ROUNDING` it is `ROUNDING`.
    """
    numbers = values.double().tolist() if isinstance(values, Tensor) else [*map(float, values)]
    if not numbers:
        return True
    lowest, highest = min(numbers), max(numbers)
    return highest - lowest <= max(tolerance, ROUNDING) * max(abs(lowest), abs(highest))


def reaches(reward: float, threshold: float) -> bool:
    """Whether a reward is at least a threshold; a sum of parts may come out an ulp below it."""
    return reward >= threshold - ROUNDING * max(abs(reward), abs(threshold))
