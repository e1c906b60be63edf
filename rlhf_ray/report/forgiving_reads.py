"""Reading of an output folder in whatever state a run left it: nothing here raises for content.

What cannot be read is noted, and the report says it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

# A line of a file that some other program wrote may have no end.
_MAX_LINE_CHARACTERS = 64 * 1024 * 1024


class ReadNotes:
    """Sentences about what a report leaves out or could not read, each once."""

    def __init__(self) -> None:
        self._texts: dict[str, None] = {}

    def add(self, text: str) -> None:
        self._texts[text] = None

    def texts(self) -> list[str]:
        return list(self._texts)


def read_json(path: Path, notes: ReadNotes) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none, or another kind of content."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError, RecursionError) as error:
        notes.add(f"{path.name} cannot be read: {error}")
        return {}
    if not isinstance(values, dict):
        notes.add(f"{path.name} holds no object of JSON")
        return {}
    return values


def read_lines(path: Path, notes: ReadNotes) -> Iterator[tuple[dict[str, Any], int]]:
    """Objects of a file of JSON lines, each with the bytes read so far.

    A last line without its end is one that a killed run was writing, and no fault.
    """
    if path.exists() and not path.is_file():  # To open a named pipe would wait for its writer.
        notes.add(f"{path.name} cannot be read: it is no regular file")
        return
    bad = 0
    try:
        with path.open("rb") as file:
            read = 0
            while line := file.readline(_MAX_LINE_CHARACTERS):
                read += len(line)
                try:
                    row = json.loads(line, parse_constant=lambda _: None)
                except (ValueError, RecursionError):
                    row = None
                if isinstance(row, dict):
                    yield row, read
                elif line.endswith(b"\n") and line.strip():
                    bad += 1
    except OSError as error:
        notes.add(f"{path.name} cannot be read: {error}")
    if bad:
        notes.add(f"{path.name}: {bad} lines are no objects of JSON and are left out")


def read_steps(path: Path, notes: ReadNotes) -> list[dict[str, float]]:
    """Metrics of every step, in order; NaN for a value that was not finite.

    Of two lines of one step the later one counts: a resumed run writes it again.
    """
    rows: dict[int, dict[str, float]] = {}
    if not path.is_file():
        return []
    without = 0
    for row, _ in read_lines(path, notes):
        step = row.get("step")
        if not is_number(step):
            without += 1
            continue
        values = {
            name: math.nan if value is None else float(value)
            for name, value in row.items()
            if name != "step" and (value is None or is_number(value))
        }
        rows[int(step)] = {"step": float(step), **values}
    if without:
        notes.add(f"{path.name}: {without} lines name no step and are left out")
    return [rows[step] for step in sorted(rows)]


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value of JSON is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def as_text(value: Any, limit: int) -> str:
    """A value as text of at most `limit` characters; the cut is shown."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit:,} more)"
