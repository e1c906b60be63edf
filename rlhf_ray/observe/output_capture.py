"""Capture of library output in files, off the screen.

vLLM, DeepSpeed, transformers and Ray log through `logging`, `warnings`, plain prints and, from C++,
straight to the descriptors 1 and 2. Their handlers are made when they are imported and keep the
stream of that moment. So the output is captured per process and not per library:

- In a worker nothing is redirected: Ray collects the output of each worker in a file of the
  session's folder (`worker-*.out` and `.err`), and the driver starts Ray with
  `log_to_driver=False`. `quiet_worker` only makes that file readable.
- In the driver, `quiet_driver` redirects the descriptors 1 and 2 to output_dir/logs/driver.log and
  yields the real screen for the run's own messages.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rlhf_ray.interrupts import current_handler
from rlhf_ray.unread_output import surviving

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Progress bars, redrawn a hundred times a second, would fill the files.
_NO_BARS = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}


def driver_log(output_dir: Path) -> Path:
    """File with the library output of the driver."""
    return output_dir / "logs" / "driver.log"


def quiet_worker() -> None:
    """Set up this worker process's log: no progress bars, lines with time, level and origin.

    Call it before the heavy imports: the libraries read these variables when they are imported.
    """
    os.environ.update(_NO_BARS)
    logging.basicConfig(format=_FORMAT, level=logging.INFO, stream=sys.stderr)
    logging.captureWarnings(True)


def quiet_device_guess() -> None:
    """Keep a warning of DeepSpeed off the screen of a command: that it found no GPU.

    deepspeed 0.19.8, accelerator/real_accelerator.py, says so when it is imported, before the
    output of a run is captured. The command itself computes on no device, and its workers are told
    theirs: it reads as a fault and is none. Call it before libraries are imported.
    """
    logging.getLogger("DeepSpeed").addFilter(_is_no_guess)


def _is_no_guess(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Setting accelerator to CPU")


@contextmanager
def quiet_driver(output_dir: Path) -> Iterator[TextIO]:
    """Send everything that this process prints to the driver's log while the context lasts.

    Yields:
        The real standard output, for `make_progress` and the run's own messages. After the context
        the caller can report errors on the screen again.
    """
    log = driver_log(output_dir)
    log.parent.mkdir(parents=True, exist_ok=True)
    os.environ.update(_NO_BARS)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    root, old_level = logging.getLogger(), logging.getLogger().level
    handler = logging.FileHandler(log, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT))
    try:
        with log.open("a") as file, _screen() as screen:
            # Descriptors, not `sys.stdout`: C++ code writes to them directly.
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            root.addHandler(handler)
            root.setLevel(logging.INFO)
            logging.captureWarnings(True)
            yield screen
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(old_level)
        handler.close()
        # Before the descriptors are restored: buffered output belongs in the log.
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)


def _screen() -> TextIO:
    """The real standard output; a run goes on where it cannot be written."""
    return surviving(os.dup(1), say=lambda text: current_handler().say(text), closes=True)
