"""The end of a stage, whatever it is: its record, and the report of its folder."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.stages import EVALUATION_STAGES, TRAINING_STAGES
from rlhf_ray.failure_report import printable
from rlhf_ray.report.report_file import write_report
from rlhf_ray.report.rollouts.rollout_reader import ReadBounds
from rlhf_ray.run_folder.ending import write_ending

# The folder of an export is a model to be passed on, and a service has no end.
REPORTED_STAGES = (*TRAINING_STAGES, *EVALUATION_STAGES, "compress", "pipeline")
# After a signal: whoever sent it waits some seconds, and then kills.
_HURRIED = ReadBounds(files=100, bytes=16 * 1024 * 1024, seconds=4.0)


@contextmanager
def told_end(folder: Path, stage: str, is_there: Callable[[], bool]) -> Iterator[None]:
    """Write end.json and report.html after the block, also if it raises.

    That they cannot be written is said, and never is the end of the run.

    Args:
        is_there: whether the folder is still the one of the run.
    """
    if stage not in REPORTED_STAGES:
        yield
        return
    started = time.monotonic()
    try:
        yield
    except RequestError:
        raise
    except BaseException as error:
        _tell(folder, stage, error, time.monotonic() - started, is_there)
        raise
    _tell(folder, stage, None, time.monotonic() - started, is_there)


def _tell(
    folder: Path,
    stage: str,
    error: BaseException | None,
    seconds: float,
    is_there: Callable[[], bool],
) -> None:
    is_hurried = error is not None and not isinstance(error, Exception)
    text = "" if error is None else "".join(traceback.format_exception(error))
    try:
        if not is_there():
            return
        ending = write_ending(folder, stage, error, seconds=seconds)
        path = write_report(
            folder, ending=ending, error=text, bounds=_HURRIED if is_hurried else None
        )
        print(f"Report: {path}", flush=True)
    except Exception as problem:  # noqa: BLE001 - the run is worth more than its report
        words = printable(f"{type(problem).__name__}: {problem}")
        print(
            f"rlhf_ray: the report of {folder} could not be written ({words}); the run is as it "
            f"was: python -m rlhf_ray.main report {folder}",
            file=sys.stderr,
        )
