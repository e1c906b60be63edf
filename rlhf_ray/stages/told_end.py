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
from rlhf_ray.interrupts import (
    Interrupted,
    dismiss_interruption,
    interruption,
    is_interrupted,
)
from rlhf_ray.report.page import MOST_TRIES
from rlhf_ray.report.report_file import write_report
from rlhf_ray.report.rollouts.rollout_reader import ReadBounds
from rlhf_ray.run_folder.ending import write_ending

# The folder of an export is a model to be passed on, and a service has no end.
REPORTED_STAGES = (*TRAINING_STAGES, *EVALUATION_STAGES, "compress", "pipeline")
# After a signal: whoever sent it waits some seconds, and then kills.
_SIGNALS = (KeyboardInterrupt, Interrupted)
_HURRIED = ReadBounds(files=100, bytes=16 * 1024 * 1024, seconds=4.0)


@contextmanager
def told_end(folder: Path, stage: str, is_there: Callable[[], bool]) -> Iterator[None]:
    """Write end.json and report.html after the block, also if it raises.

    That they cannot be written is said, and never is the end of the run. Nor is a signal that comes
    meanwhile: the run has ended, and its outcome stands.

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
    was_interrupted = is_interrupted()
    is_hurried = was_interrupted or isinstance(error, _SIGNALS)
    cause = error
    if error is not None and was_interrupted and not isinstance(error, _SIGNALS):
        # A library has made another error of the signal; the report has its traceback.
        cause = interruption() or KeyboardInterrupt()
    text = "" if error is None else "".join(traceback.format_exception(error))
    try:
        if not is_there():
            return
        ending = write_ending(folder, stage, cause, seconds=seconds)
        path = write_report(
            folder,
            ending=ending,
            error=text,
            bounds=_HURRIED if is_hurried else None,
            num_tries=1 if is_hurried else MOST_TRIES,
        )
        print(f"Report: {path}", flush=True)
    except (Exception, *_SIGNALS) as problem:  # noqa: BLE001 - a run is worth more than its report
        words = printable(f"{type(problem).__name__}: {problem}")
        if isinstance(problem, _SIGNALS):
            words = "a signal came"
        print(
            f"rlhf_ray: the report of {folder} could not be written ({words}); the run is as it "
            f"was: python -m rlhf_ray.main report {folder}",
            file=sys.stderr,
        )
    finally:
        if not was_interrupted:
            dismiss_interruption()
