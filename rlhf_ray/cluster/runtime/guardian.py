"""The guardian of a local Ray: a process that outlives the driver and ends what Ray has started.

    python -I -S guardian.py MARK

Its input has the ids of the processes that the driver has started for Ray, a line each. When the
input ends, or the driver dies, it kills: every process of the sessions that those processes lead,
every process that has `MARK` in its environment, and all their descendants. SIGKILL of a driver
ends Ray's GCS and raylet (they ask the kernel for it), but not what they have started.

Standard library only, and nothing of this package: it is there from the first process of Ray on,
costs 8 MB, and must not die of what a driver dies of.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from pathlib import Path

_POLL_S = 0.5
# How long it looks for what still starts while others are killed.
_KILL_S = 10.0


def main(mark: str) -> None:
    """Wait for the end of the driver, then end the processes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # They go to all processes of a job (systemd, Slurm); the driver alone decides.
        signal.signal(number, signal.SIG_IGN)
    leaders = _read_until_the_end(os.getppid())
    deadline = time.monotonic() + _KILL_S
    while (found := _processes(leaders, mark.encode())) and time.monotonic() < deadline:
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


def _read_until_the_end(driver: int) -> set[int]:
    """Ids of the sessions of Ray, when the input has ended or the driver is dead."""
    text = b""
    # A fork of the driver may hold the other end of the input open: so its death counts, too.
    while os.getppid() == driver:
        if not select.select([0], [], [], _POLL_S)[0]:
            continue
        if not (part := os.read(0, 4096)):
            break
        text += part
    return {int(line) for line in text.split()}


def _processes(leaders: set[int], mark: bytes) -> set[int]:
    """Living processes of Ray, without this one."""
    parents: dict[int, int] = {}
    found: set[int] = set()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        pid = int(folder.name)
        try:
            # After the name, which is in brackets and may hold anything: state, parent, group,
            # session.
            state, parent, _, session = (
                (folder / "stat").read_bytes().rpartition(b")")[2].split()[:4]
            )
            parents[pid] = int(parent)
            if state == b"Z":
                continue
            if int(session) in leaders or mark in (folder / "environ").read_bytes().split(b"\0"):
                found.add(pid)
        except (OSError, ValueError):
            continue  # Gone in the meantime, or of another user.
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


if __name__ == "__main__":
    main(sys.argv[1])
