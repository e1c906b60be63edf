"""Runs the tests in two parts: those that may share the cores first, in parallel; then the others.

    python -m tests.parts [arguments of pytest]

Engines, Ray clusters and groups of ranks need all cores, and their time limits assume them. They
are started once for all tests of a folder, so those tests run in one process, alone.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).resolve().parent
# Folders and files below tests/ whose tests run one at a time.
ALONE = ("e2e", "gpu", "launch", "ray", "stack")
# Of those, files that start no engine and no cluster.
NOT_ALONE = ("e2e/test_malformed.py",)
PARTS = ("parallel", "alone")
# Neighbouring tests go to one process, which makes what they share once.
PARALLEL = ("-n", "logical", "--maxprocesses", "8", "--dist", "worksteal")
NO_TESTS_COLLECTED = 5


def part_of(file: Path) -> str:
    """The part that a test file, or a folder that is all in one part, belongs to."""
    name = file.resolve().relative_to(TESTS).as_posix()
    is_alone = name.split("/")[0] in ALONE and name not in NOT_ALONE
    return "alone" if is_alone else "parallel"


def main(arguments: Sequence[str]) -> int:
    """The exit status of pytest; a part without a test is fine if the other part has one."""
    statuses = []
    for part in PARTS:
        command = [sys.executable, "-m", "pytest", f"--part={part}"]
        command += [*(PARALLEL if part == "parallel" else ()), *arguments]
        statuses.append(subprocess.run(command, check=False).returncode)
    return exit_status(statuses)


def exit_status(statuses: Sequence[int]) -> int:
    """The first failure; that no test was found counts only if it holds for every part."""
    if all(status == NO_TESTS_COLLECTED for status in statuses):
        return NO_TESTS_COLLECTED
    return next((status for status in statuses if status not in (0, NO_TESTS_COLLECTED)), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
