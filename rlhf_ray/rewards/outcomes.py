"""Outcome of scoring one sample: a number, or the failure that drops the sample."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.records import FailureKind


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemFailure:
    """Reason why a reward function or a scorer gave no value for a sample."""

    kind: FailureKind
    message: str


# A scorer's score of one sample, or why it has none.
Outcome = float | ItemFailure
