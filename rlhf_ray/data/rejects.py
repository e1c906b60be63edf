"""Rows that cannot be used: refused, or left out and counted, as the source is configured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from rlhf_ray.config.groups.data import SourceConfig
from rlhf_ray.data.rows import BrokenRow, DataError, Row

BROKEN, INVALID = "broken row", "invalid row"


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """How many rows are left out for one reason, and what was wrong with the first of them."""

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
        """Count a row that is wrong.

        Raises:
            DataError: the source's `on_bad_row` says that it ends the run.
        """
        message = f"{where}: {problem}"
        if self.source.on_bad_row == "error":
            way_out = f"{self.source.key('on_bad_row')}=skip leaves such rows out and counts them"
            raise DataError(f"{message}. {way_out}")
        self.count(reason, message)

    def count(self, reason: str, message: str) -> None:
        """Count a row that is left out whatever `on_bad_row` says."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.examples.setdefault(reason, message)

    def skipped(self) -> tuple[Skipped, ...]:
        """What was counted, in the order in which the reasons came up."""
        return tuple(
            Skipped(reason=reason, count=count, example=self.examples[reason])
            for reason, count in self.counts.items()
        )

    def words(self) -> str:
        """The end of a sentence that says that nothing is left; empty if nothing was counted."""
        parts = [f"{s.count} skipped as {s.reason} (first: {s.example})" for s in self.skipped()]
        return f": {'; '.join(parts)}" if parts else ""


def good_rows(rows: Iterable[Row | BrokenRow], rejects: Rejects) -> Iterator[Row]:
    """The rows that could be read.

    Raises:
        DataError: one could not, and the source's `on_bad_row` says that it ends the run.
    """
    for row in rows:
        if isinstance(row, BrokenRow):
            rejects.bad_row(BROKEN, row.where, row.problem)
        else:
            yield row


def skipped_lines(skipped: Iterable[Skipped]) -> list[str]:
    """Lines for people: what is left out."""
    return [f"skipped, {s.reason}: {s.count} (first: {s.example})" for s in skipped]
