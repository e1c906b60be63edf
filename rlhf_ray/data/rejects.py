"""Unusable rows: they end the run, or are left out and counted, as configured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from rlhf_ray.config.groups.data import SourceConfig
from rlhf_ray.data.rows import BrokenRow, DataError, Row

BROKEN, INVALID = "broken row", "invalid row"


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """Number of rows left out for one reason, and the message about the first of them."""

    reason: str
    count: int
    example: str


@dataclass(slots=True)
class Rejects:
    """Counts the rows of one source that are left out."""

    source: SourceConfig
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def bad_row(self, reason: str, where: str, problem: str) -> None:
        """Count an unusable row.

        Raises:
            DataError: `on_bad_row` of the source is error.
        """
        message = f"{where}: {problem}"
        if self.source.on_bad_row == "error":
            fix = f"{self.source.key('on_bad_row')}=skip leaves such rows out and counts them"
            raise DataError(f"{message}. Correct the row, or: {fix}")
        self.count(reason, message)

    def count(self, reason: str, message: str) -> None:
        """Count a row that is left out with any `on_bad_row`."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.examples.setdefault(reason, message)

    def skipped(self) -> tuple[Skipped, ...]:
        """Counts by reason, in the order in which the reasons first occurred."""
        return tuple(
            Skipped(reason=reason, count=count, example=self.examples[reason])
            for reason, count in self.counts.items()
        )

    def summary(self) -> str:
        """End of a message that nothing is left: counts by reason; empty without counts."""
        parts = [f"{s.count} skipped as {s.reason} (first: {s.example})" for s in self.skipped()]
        return f": {'; '.join(parts)}" if parts else ""


def good_rows(rows: Iterable[Row | BrokenRow], rejects: Rejects) -> Iterator[Row]:
    """Yield the rows that could be parsed.

    Raises:
        DataError: a row could not be parsed and `on_bad_row` of the source is error.
    """
    for row in rows:
        if isinstance(row, BrokenRow):
            rejects.bad_row(BROKEN, row.where, row.problem)
        else:
            yield row


def skipped_lines(skipped: Iterable[Skipped]) -> list[str]:
    """Lines for the screen about rows that were left out."""
    return [f"skipped, {s.reason}: {s.count} (first: {s.example})" for s in skipped]
