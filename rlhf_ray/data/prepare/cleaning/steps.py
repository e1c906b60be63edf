"""Interface of a cleaning step, and running several of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from rlhf_ray.data.prepare.conversion.contents import Removal, Sample


class Step(Protocol):
    """One cleaning step. It may remember what it saw, within bounded memory."""

    def apply(self, sample: Sample) -> Sample | Removal:
        """Return the sample, changed or not, or its removal."""
        ...


class Notes:
    """Counts, by source, of findings that remove nothing."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}

    def add(self, source: str, note: str, count: int = 1) -> None:
        self._counts.setdefault(source, Counter())[note] += count

    def of(self, source: str) -> dict[str, int]:
        """Counts by note, in the order in which the notes were first added."""
        return dict(self._counts.get(source, {}))


def apply_steps(steps: Sequence[Step], sample: Sample) -> Sample | Removal:
    """Apply the steps in order, up to a step that removes the sample."""
    for step in steps:
        result = step.apply(sample)
        if isinstance(result, Removal):
            return result
        sample = result
    return sample
