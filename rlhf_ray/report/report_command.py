"""`python -m rlhf_ray.main report RUN [RUN ...]`: reports again, and a comparison of several."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rlhf_ray.config.errors import RequestError
from rlhf_ray.report.forgiving_reads import ReadNotes, read_json
from rlhf_ray.report.report_file import write_comparison, write_report

WORD = "report"
# More runs in one chart are not told apart.
_MAX_RUNS = 8
_SIGNS = (
    *("config.yaml", "metrics.jsonl", "end.json", "summary.json", "progress.json"),
    *("evaluation.json", "compression.json", "rollouts"),
)


def run_report(arguments: Sequence[str], say: Callable[[str], None]) -> int:
    """Write `report.html` of every folder; of several also `comparison.html` in the first.

    Of a pipeline the reports of its stages are written, too.

    Args:
        arguments: folders, as on the command line.
        say: shows a line.

    Returns:
        the exit status, 0.

    Raises:
        RequestError: no folder is named, one holds no output of a run, or cannot be written.
    """
    if not arguments:
        raise RequestError("report needs the output folder of a run: report outputs/demo")
    folders = list(dict.fromkeys(Path(os.path.abspath(name)) for name in arguments))
    if len(folders) > _MAX_RUNS:
        raise RequestError(
            f"report compares at most {_MAX_RUNS} runs, and {len(folders)} are named; name fewer"
        )
    for folder in folders:
        _check(folder)
    for folder in folders:
        for place in (*_stages_of(folder), folder):
            say(f"Report: {_written(lambda place=place: write_report(place), place)}")
    if len(folders) > 1:
        say(f"Comparison: {_written(lambda: write_comparison(folders), folders[0])}")
    return 0


def _written(write: Callable[[], Path], folder: Path) -> Path:
    try:
        return write()
    except OSError as error:
        raise RequestError(
            f"the report cannot be written to {str(folder)!r}: {error.strerror or error}; copy the "
            f"folder to a place that you can write"
        ) from error


def _check(folder: Path) -> None:
    if not folder.is_dir():
        is_setting = "=" in folder.name
        hint = "; report takes folders, and no settings" if is_setting else ""
        raise RequestError(f"report: there is no folder {str(folder)!r}{hint}")
    if not any((folder / name).exists() for name in _SIGNS):
        raise RequestError(
            f"report: {str(folder)!r} holds no output of a run (none of {', '.join(_SIGNS)}); name "
            f"the output_dir of a run"
        )


def _stages_of(folder: Path) -> list[Path]:
    """The folders of a pipeline's stages, in order; none of another run."""
    stages = read_json(folder / "progress.json", ReadNotes()).get("stages")
    names = stages if isinstance(stages, dict) else {}
    # A name is one of the configuration's keys; a file that was changed may hold anything.
    plain = [name for name in names if name not in ("", ".", "..") and "/" not in name]
    return [folder / name for name in plain if (folder / name).is_dir()]
