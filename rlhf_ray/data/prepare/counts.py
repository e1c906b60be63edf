"""Counts of a run by source and by data set, in memory that does not grow with the set."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

# Lengths are counted in steps of this ratio, so that quantiles are right to within it.
_RATIO = 1.05


@dataclass(slots=True)
class SourceCounts:
    """Samples of one source: read + made = kept + all removed.

    Attributes:
        read: rows, or samples if a row has several.
        made: additional samples from conversions that make several out of one.
        removed: by reason.
    """

    read: int = 0
    made: int = 0
    kept: int = 0
    removed: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class LengthCounts:
    """Histogram of lengths in characters."""

    count: int = 0
    total: int = 0
    least: int = 0
    most: int = 0
    _steps: Counter[int] = field(default_factory=Counter)

    def add(self, length: int) -> None:
        self.least = length if self.count == 0 else min(self.least, length)
        self.most = max(self.most, length)
        self.count += 1
        self.total += length
        self._steps[round(math.log(max(length, 1), _RATIO))] += 1

    def quantile(self, share: float) -> int:
        """The length that this share of the samples does not exceed, to within 5 %."""
        seen = 0
        for step in sorted(self._steps):
            seen += self._steps[step]
            if seen >= share * self.count:
                return min(self.most, max(self.least, round(_RATIO**step)))
        return self.most

    def to_json(self) -> dict[str, Any]:
        return {
            "mean": round(self.total / self.count, 1) if self.count else 0.0,
            "min": self.least,
            "median": self.quantile(0.5),
            "p95": self.quantile(0.95),
            "max": self.most,
        }


@dataclass(slots=True)
class DatasetCounts:
    """One data set of the output, before blending.

    Attributes:
        tasks: samples by task.
    """

    kind: str
    lengths: LengthCounts = field(default_factory=LengthCounts)
    tasks: Counter[str] = field(default_factory=Counter)
