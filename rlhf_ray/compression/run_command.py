"""Run of a command with a time limit and a log file."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from rlhf_ray.config.errors import RunFailed

_SHOWN_CHARACTERS = 2000


def run_command(command: Sequence[str], *, log: Path, what: str, timeout_s: float) -> None:
    """Run a command to its end; an error or Ctrl-C here ends it together with its children.

    Args:
        log: file for the command's output.
        what: description of the command, for messages.

    Raises:
        RunFailed: the command failed or took longer than `timeout_s`; shows the end of the log.
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
            # The command leads its own process group, so that its children are killed too.
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    if status != 0:
        raise RunFailed(f"{what} failed with status {status}{_end_of(log)}")


def _end_of(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")[-_SHOWN_CHARACTERS:].strip()
    return f"; the end of {log}:\n{text}"
