"""The two parts of `make test`: no test is in none, and the outcome of neither is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import parts
from tests.parts import exit_status, part_of

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("unit/test_architecture.py", "parallel"),
        ("benchmarks/test_agreement.py", "parallel"),
        ("e2e/test_malformed.py", "parallel"),
        ("e2e/test_resume.py", "alone"),
        ("stack/training/test_state.py", "alone"),
        ("ray/test_runtime.py", "alone"),
    ],
)
def test_part_of_a_file(file, part):
    assert part_of(parts.TESTS / file) == part


def test_what_is_named_is_there():
    named = [*parts.ALONE, *parts.NOT_ALONE]
    assert [name for name in named if not (parts.TESTS / name).exists()] == []


@pytest.mark.parametrize(("part", "status"), [("alone", 0), ("parallel", 5)])
@pytest.mark.parametrize("argument", ["tests/launch", "tests/launch/test_parts.py"])
def test_a_part_collects_its_own_tests(part, status, argument):
    """Also of a folder or a file of the other part that is named on the command line."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", f"--part={part}", argument]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == status, done.stdout
    assert ("test_part_of_a_file" in done.stdout) == (part == "alone")


@pytest.mark.parametrize(
    ("statuses", "status"),
    [((0, 0), 0), ((0, 5), 0), ((5, 0), 0), ((5, 5), 5), ((1, 0), 1), ((5, 2), 2), ((0, 1), 1)],
)
def test_exit_status(statuses, status):
    assert exit_status(statuses) == status


def test_both_parts_run_whatever_becomes_of_the_first(monkeypatch):
    calls: list[list[str]] = []

    def run(command: list[str], *, check: bool) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, returncode=int(len(calls) == 1))

    monkeypatch.setattr(subprocess, "run", run)
    assert parts.main(["-k", "name"]) == 1
    assert ["--part=parallel" in calls[0], "--part=alone" in calls[1]] == [True, True]
    assert [call[-2:] for call in calls] == [["-k", "name"]] * 2
    assert ["-n" in call for call in calls] == [True, False]
