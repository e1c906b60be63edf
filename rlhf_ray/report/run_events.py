"""Events of a run, to be marked on its curves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.report.forgiving_reads import ReadNotes, as_text, read_json, read_lines

MAX_EVENTS = 400


def find_events(
    folder: Path, rows: Sequence[Mapping[str, float]], notes: ReadNotes
) -> list[list[Any]]:
    """Step, kind and words of every event, in order of steps.

    Lost workers and their replacements are in events.jsonl, all others follow from other files.
    """
    events = _recoveries(folder, notes)
    for row in rows:
        step = int(row["step"])
        if "time/checkpoint_s" in row:
            events.append([step, "checkpoint", f"checkpoint, {row['time/checkpoint_s']:.1f} s"])
        if "time/evaluate_s" in row or any(name.startswith("eval/") for name in row):
            events.append([step, "evaluation", "evaluation of the held-out rows"])
        failed = row.get("rollout/failed_groups", 0.0)
        if failed > 0:
            events.append([step, "failure", f"{failed:.0f} groups failed"])
        lost = [name for name, value in row.items() if math.isnan(value)]
        if lost:
            more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
            events.append([step, "failure", f"not finite: {', '.join(lost[:3])}{more}"])
    best = read_json(folder / "best.json", notes)
    if isinstance(best.get("step"), int):
        words = f"best model: {best.get('metric')} = {best.get('value')}"
        events.append([best["step"], "best", words])
    events += _gaps(rows)
    return _bounded(sorted(events, key=lambda event: event[0]), notes)


def _recoveries(folder: Path, notes: ReadNotes) -> list[list[Any]]:
    """Lost workers and those that are in their place; see `driver.fleet.accounts`."""
    path = folder / "events.jsonl"
    found: list[list[Any]] = []
    for row, _ in read_lines(path, notes) if path.is_file() else ():
        step = row.get("step")
        # Events count the steps that are done, and metrics the one that is under way.
        place = step + 1 if isinstance(step, int) else 1
        if row.get("event") in ("engine_lost", "role_lost"):
            words = f"{row.get('what')} in phase {row.get('phase')}: {row.get('reason')}"
            found.append([place, "loss", as_text(words, 500)])
        elif row.get("event") == "engine_back":
            words = (
                f"{row.get('engine')} serves, {row.get('seconds')} s after the loss; "
                f"{row.get('groups_issued_again')} groups were issued again"
            )
            found.append([place, "recovery", as_text(words, 500)])
        elif row.get("event") == "role_back":
            words = (
                f"learner and critic go on, {row.get('seconds')} s after the loss, from "
                f"{row.get('source')}; {row.get('updates_done_again')} updates were done again"
            )
            found.append([place, "recovery", as_text(words, 500)])
    return found


def _gaps(rows: Sequence[Mapping[str, float]]) -> list[list[Any]]:
    """Steps without a line between two that have one: lines were lost or removed."""
    steps = [int(row["step"]) for row in rows]
    return [
        [after, "failure", f"steps {before + 1} to {after - 1} have no metrics"]
        for before, after in itertools.pairwise(steps)
        if after > before + 1
    ]


def _bounded(events: list[list[Any]], notes: ReadNotes) -> list[list[Any]]:
    """At most `MAX_EVENTS`: the rarest kinds first, and of the others evenly spaced ones."""
    kinds: dict[str, list[list[Any]]] = {}
    for event in events:
        kinds.setdefault(event[1], []).append(event)
    room, kept = MAX_EVENTS, []
    for left, found in enumerate(sorted(kinds.values(), key=len)):
        share = room // (len(kinds) - left)
        if len(found) > share:
            notes.add(f"{share} of {len(found)} events of the kind {found[0][1]} are marked")
            found = [found[i * len(found) // share] for i in range(share)]
        room -= len(found)
        kept += found
    return sorted(kept, key=lambda event: event[0])
