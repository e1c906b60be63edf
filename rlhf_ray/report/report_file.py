"""Writing of `report.html` into an output folder, and of a comparison of several runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.atomic_file import write_atomically
from rlhf_ray.report.page import MAX_BYTES, MOST_TRIES, make_page
from rlhf_ray.report.rollouts.rollout_reader import ReadBounds
from rlhf_ray.report.run_contents import read_run
from rlhf_ray.report.settings_shown import different_settings

REPORT_FILE = "report.html"
COMPARISON_FILE = "comparison.html"


def write_report(
    folder: Path,
    *,
    ending: Mapping[str, Any] | None = None,
    error: str | None = None,
    bounds: ReadBounds | None = None,
    max_bytes: int = MAX_BYTES,
    num_tries: int = MOST_TRIES,
) -> Path:
    """Write the report of a folder; returns its path.

    Args:
        ending, error: how the run ended, and the traceback, where the folder has no record yet.
        bounds: of the reading of rollouts.
        num_tries: see `page.make_page`.

    Raises:
        OSError: the file cannot be written.
    """
    contents = read_run(folder, ending=ending, error=error, bounds=bounds)

    def make(characters: int, points: int, metrics: int) -> dict[str, Any]:
        run = contents.values(characters=characters, max_points=points, max_metrics=metrics)
        return {"runs": [run]}

    page = make_page(
        f"{folder.name}: report of a run", make, max_bytes=max_bytes, num_tries=num_tries
    )
    path = folder / REPORT_FILE
    write_atomically(path, page)
    return path


def write_comparison(folders: Sequence[Path], *, max_bytes: int = MAX_BYTES) -> Path:
    """Write a page about several runs into the first folder; returns its path.

    It has no answers of the models: those are in the report of every run.

    Raises:
        OSError: the file cannot be written.
    """
    labels = _labels(folders)
    # Files of rollouts are read for the alarms.
    contents = [read_run(folder) for folder in folders]
    settings = {label: run.settings for label, run in zip(labels, contents, strict=True)}

    def make(_: int, points: int, metrics: int) -> dict[str, Any]:
        runs = [
            {"label": label, **run.values(characters=0, max_points=points, max_metrics=metrics)}
            for label, run in zip(labels, contents, strict=True)
        ]
        return {"runs": runs, "differences": different_settings(settings)}

    path = folders[0] / COMPARISON_FILE
    write_atomically(path, make_page(" and ".join(labels), make, max_bytes=max_bytes))
    return path


def _labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart."""
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    longest = max(len(path.parts) for path in paths)
    for size in range(1, longest + 1):
        labels = ["/".join(path.parts[-size:]) for path in paths]
        if len(set(labels)) == len(labels):
            return labels
    return [str(path) for path in paths]
