"""Counts of what is learnt otherwise than a row says it, though the row is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class RowNotes:
    """Counts of rows by note, each with the place of the first."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, where: str, notes: Iterable[str]) -> None:
        """Count a row once for each of its notes."""
        for note in dict.fromkeys(notes):
            self.counts[note] = self.counts.get(note, 0) + 1
            self.first.setdefault(note, where)

    def lines(self) -> tuple[str, ...]:
        """Lines for the screen, in the order in which the notes first occurred."""
        return tuple(self._lines())

    def _lines(self) -> Iterator[str]:
        for note, count in self.counts.items():
            yield f"{note}: {count} rows (first: {self.first[note]})"
