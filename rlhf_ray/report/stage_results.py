"""Results of stages that have no steps: evaluations, pipelines, compression; and the summary."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rlhf_ray.report.forgiving_reads import ReadNotes, as_text, is_number, read_json, read_lines
from rlhf_ray.report.rollouts.rollout_reader import KeptGroup, kept_group

# Characters of a traceback: its end.
MAX_ERROR = 6000
_MAX_FIGURES = 400
_MAX_PROMPTS = 400
# Of compression.json and evaluation.json: the forms or models side by side.
_TABLES = (("evaluation.json", "models"), ("compression.json", "forms"))


def read_summary(folder: Path, notes: ReadNotes) -> list[list[str]]:
    """Names and values of summary.json."""
    figures = list(_figures(read_json(folder / "summary.json", notes), ""))
    return [[name, value] for name, value in figures[:_MAX_FIGURES]]


def read_tables(folder: Path, notes: ReadNotes) -> list[dict[str, Any]]:
    """Tables of models or forms: `title`, `columns`, `rows` of a name and a text per column."""
    tables = []
    for file, key in _TABLES:
        found = read_json(folder / file, notes).get(key)
        if not isinstance(found, dict) or not found:
            continue
        columns = {str(name): dict(_figures(values, "")) for name, values in found.items()}
        names = list(dict.fromkeys(name for figures in columns.values() for name in figures))
        if len(names) > _MAX_FIGURES:
            notes.add(f"{_MAX_FIGURES} of {len(names)} figures of {file} are shown")
        rows = [
            [name, *(figures.get(name, "-") for figures in columns.values())]
            for name in names[:_MAX_FIGURES]
        ]
        tables.append({"title": file, "columns": list(columns), "rows": rows})
    return tables


def read_compared_answers(folder: Path, notes: ReadNotes) -> list[KeptGroup]:
    """Answers of several models to the same prompts, from the samples.jsonl of an evaluation."""
    path = folder / "samples.jsonl"
    groups: list[KeptGroup] = []
    if not path.is_file():
        return groups
    for number, (row, _) in enumerate(read_lines(path, notes)):
        if number == _MAX_PROMPTS:
            notes.add(f"samples.jsonl: the first {_MAX_PROMPTS} prompts are shown")
            break
        answers = row.get("answers")
        for model, modes in answers.items() if isinstance(answers, dict) else ():
            for mode, found in modes.items() if isinstance(modes, dict) else ():
                if rows := [_as_row(row, answer) for answer in found if isinstance(answer, dict)]:
                    groups.append(kept_group(rows, f"{model}, {mode}"))
    return groups


def read_pipeline(folder: Path, notes: ReadNotes) -> list[dict[str, Any]]:
    """Stages of a pipeline in order: name, seconds, folder, its end and its report."""
    stages = read_json(folder / "progress.json", notes).get("stages")
    found = []
    for name, entry in stages.items() if isinstance(stages, dict) else ():
        seconds = entry.get("seconds") if isinstance(entry, dict) else None
        place = folder / str(name)
        end = read_json(place / "end.json", notes)
        has_report = (place / "report.html").is_file()
        found.append(
            {
                "name": str(name),
                "seconds": seconds if is_number(seconds) else None,
                "cause": as_text(end.get("cause") or "not recorded", 200),
                "report": f"./{quote(str(name))}/report.html" if has_report else None,
                "summary": read_summary(place, notes)[:40],
            }
        )
    return found


def read_error(folder: Path, limit: int = MAX_ERROR) -> str:
    """The end of error.log; empty without the file."""
    path = folder / "error.log"
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - limit))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _as_row(row: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    """An answer of an evaluation in the form of a rollout."""
    return {
        "prompt_id": row.get("prompt_id"),
        "prompt": row.get("prompt"),
        "response": answer.get("text"),
        "reward": answer.get("reward"),
        "reward_parts": answer.get("reward_parts"),
        "finish_reason": "length" if answer.get("is_cut") else "stop",
        "response_tokens": answer.get("tokens"),
    }


def _figures(values: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Leaves of nested objects by dotted name; lists are shown as text."""
    if not isinstance(values, dict):
        return
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _figures(value, f"{key}.")
        elif value is None:
            yield key, "-"
        elif is_number(value):
            yield key, f"{value:.6g}" if isinstance(value, float) else str(value)
        else:
            yield key, as_text(value, 300)
