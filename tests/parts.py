"""Runs the tests in parts: those of single functions, in parallel, and lanes of real processes.

    python -m tests.parts [arguments of pytest]

Engines, Ray clusters and groups of ranks are started once for all tests of a folder, so that a
folder runs in one process, its lane. The lanes that wait most of the time, for processes of Ray,
share the cores with the parallel part, and the others come after it, at once. The words of a lane
are printed when it has ended, in the order of the lanes.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

TESTS = Path(__file__).resolve().parent
# Lanes: folders and files below tests/ whose tests run one at a time. A file is in the lane that
# names it; those that start a Ray of their own share no cluster with the others of their folder.
LANES = {
    "ray": ("ray", "cluster"),
    "e2e": ("e2e", "launch", "ray/test_session.py"),
    "engines": ("gpu", "stack"),
    "ranks": ("stack/training",),
}
# The lanes that begin with the parallel part.
FIRST_LANES = ("ray", "e2e")
# Of those, files that start no engine and no cluster.
NOT_IN_A_LANE = ("e2e/test_malformed.py",)
PARTS = ("parallel", *LANES)
# Neighbouring tests go to one process, which makes what they share once.
PARALLEL = ("-n", "logical", "--maxprocesses", "8", "--dist", "worksteal")
NO_TESTS_COLLECTED = 5


def part_of(file: Path) -> str:
    """The part that a test file, or a folder that is all in one part, belongs to."""
    name = file.resolve().relative_to(TESTS).as_posix()
    if name in NOT_IN_A_LANE:
        return "parallel"
    lane_of = {place: lane for lane, places in LANES.items() for place in places}
    places = (name, *(parent.as_posix() for parent in Path(name).parents))
    return next((lane_of[place] for place in places if place in lane_of), "parallel")


def main(arguments: Sequence[str]) -> int:
    """The exit status of pytest; a part without a test is fine if another part has one."""
    with contextlib.ExitStack() as stack:
        running = {lane: _started(lane, arguments, stack) for lane in FIRST_LANES}
        statuses = [subprocess.run(_command("parallel", arguments), check=False).returncode]
        running |= {lane: _started(lane, arguments, stack) for lane in LANES if lane not in running}
        for lane in LANES:
            process, words = running[lane]
            statuses.append(process.wait())
            words.seek(0)
            shutil.copyfileobj(words, sys.stdout.buffer)
            sys.stdout.flush()
    return exit_status(statuses)


def _started(
    lane: str, arguments: Sequence[str], stack: contextlib.ExitStack
) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """A lane and the file of its words."""
    words = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
    process = subprocess.Popen(_command(lane, arguments), stdout=words, stderr=subprocess.STDOUT)
    stack.callback(_end, process)
    return process, words


def _command(part: str, arguments: Sequence[str]) -> list[str]:
    shared = PARALLEL if part == "parallel" else ()
    return [sys.executable, "-m", "pytest", f"--part={part}", *shared, *arguments]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a lane that is left behind, by Ctrl-C; pytest ends what it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.wait()


def exit_status(statuses: Sequence[int]) -> int:
    """The first failure; that no test was found counts only if it holds for every part."""
    if all(status == NO_TESTS_COLLECTED for status in statuses):
        return NO_TESTS_COLLECTED
    return next((status for status in statuses if status not in (0, NO_TESTS_COLLECTED)), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
