"""Rows from plain text: one for each paragraph or line, or one for the file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlhf_ray.data.rows import BrokenRow, Row
from rlhf_ray.data.sources.compressed import opened

TEXT_SUFFIXES = (".txt", ".text")


def read_text(path: Path, unit: str) -> Iterator[Row | BrokenRow]:
    """Read rows with the column `text`; blank lines end a paragraph and give no rows.

    Args:
        unit: paragraph, line or file. Only with `file` the whole file is held in memory.
    """
    lines: list[str] = []
    number, first, line_number = 0, 1, 0
    # Bytes: a line that is not UTF-8 is one broken row, not the end of the file.
    with opened(path) as file:
        for line_number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if line_number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                problem = f"is not UTF-8: {error.reason} at byte {error.start}"
                where = f"{path.name} line {line_number}"
                yield BrokenRow(number=number, where=where, problem=problem)
                number += 1
                continue
            is_blank = not line.strip()
            if lines and (unit == "line" or (unit == "paragraph" and is_blank)):
                yield _row(path, number, first, lines)
                number, lines = number + 1, []
            if not is_blank or (unit == "file" and lines):
                first = first if lines else line_number
                lines.append(line)
    if lines:
        yield _row(path, number, first, lines)


def _row(path: Path, number: int, first: int, lines: list[str]) -> Row:
    text = "".join(lines).rstrip("\r\n")
    return Row(number=number, where=f"{path.name} line {first}", cells={"text": text})
