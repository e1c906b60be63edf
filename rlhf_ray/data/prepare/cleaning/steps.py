"""What a cleaning step is, and the steps one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from rlhf_ray.data.prepare.conversion.contents import Removal, Sample


class Step(Protocol):
    """One cleaning step. It may remember what it saw, within bounded memory."""

    def apply(self, sample: Sample) -> Sample | Removal:
        """The sample, changed or not, or why it is removed."""
        ...


class Notes:
    """What was found and not removed, counted by source."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}

    def add(self, source: str, note: str, count: int = 1) -> None:
        self._counts.setdefault(source, Counter())[note] += count

    def of(self, source: str) -> dict[str, int]:
        """Counts by note, the first found first."""
        return dict(self._counts.get(source, {}))


def apply_steps(steps: Sequence[Step], sample: Sample) -> Sample | Removal:
    """All steps, up to the one that removes the sample."""
    for step in steps:
        result = step.apply(sample)
        if isinstance(result, Removal):
            return result
        sample = result
    return sample
