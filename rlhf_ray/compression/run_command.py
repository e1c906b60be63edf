"""Child processes with a deadline, whose output is a file."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from rlhf_ray.config.errors import RunFailed

_SHOWN_CHARACTERS = 2000


def run_command(command: Sequence[str], *, log: Path, what: str, timeout_s: float) -> None:
    """Run it to its end; an error or Ctrl-C here ends it and its own children.

    Args:
        log: takes what it prints.
        what: it does, for messages.

    Raises:
        RunFailed: it failed, or took longer than `timeout_s`; with the end of the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = child.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise RunFailed(f"{what} took longer than {timeout_s:g} s{_end_of(log)}") from error
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    if status != 0:
        raise RunFailed(f"{what} failed with status {status}{_end_of(log)}")


def _end_of(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")[-_SHOWN_CHARACTERS:].strip()
    return f"; the end of {log}:\n{text}"
