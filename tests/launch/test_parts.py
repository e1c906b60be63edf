"""The parts of `make test`: no test is in none, and the outcome of none is lost."""

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
        ("e2e/test_resume.py", "e2e"),
        ("stack/test_collective_limit.py", "engines"),
        ("stack/generation", "engines"),
        ("stack/training/test_state.py", "ranks"),
        ("stack/training", "ranks"),
        ("ray/test_runtime.py", "ray"),
        ("ray/test_session.py", "e2e"),
        ("ray", "ray"),
    ],
)
def test_part_of_a_file(file, part):
    assert part_of(parts.TESTS / file) == part


def test_what_is_named_is_there():
    named = [*(f for folders in parts.LANES.values() for f in folders), *parts.NOT_IN_A_LANE]
    assert [name for name in named if not (parts.TESTS / name).exists()] == []


@pytest.mark.parametrize(("part", "status"), [("e2e", 0), ("ranks", 5), ("parallel", 5)])
@pytest.mark.parametrize("argument", ["tests/launch", "tests/launch/test_parts.py"])
def test_a_part_collects_its_own_tests(part, status, argument):
    """Also of a folder or a file of the other part that is named on the command line."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", f"--part={part}", argument]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == status, done.stdout
    assert ("test_part_of_a_file" in done.stdout) == (part == "e2e")


@pytest.mark.parametrize(
    ("statuses", "status"),
    [((0, 0), 0), ((0, 5), 0), ((5, 0), 0), ((5, 5), 5), ((1, 0), 1), ((5, 2), 2), ((0, 1), 1)],
)
def test_exit_status(statuses, status):
    assert exit_status(statuses) == status


@pytest.mark.parametrize("fails", [None, "parallel", "ray", "e2e", "engines", "ranks"])
def test_every_part_runs_and_is_heard_whatever_becomes_of_the_others(
    monkeypatch, capfdbinary, fails
):
    """With a command that prints its part in the place of pytest."""

    def command(part: str, arguments: list[str]) -> list[str]:
        said = f"{part} {' '.join(arguments)}"
        return [sys.executable, "-c", f"print({said!r}); raise SystemExit({part == fails:d})"]

    monkeypatch.setattr(parts, "_command", command)
    assert parts.main(["-k", "name"]) == (fails is not None)
    assert capfdbinary.readouterr().out.decode().splitlines() == [
        "parallel -k name",
        "ray -k name",
        "e2e -k name",
        "engines -k name",
        "ranks -k name",
    ]


def test_the_command_of_a_part():
    shared, lane = (parts._command(part, ["-x"]) for part in ("parallel", "ray"))
    assert "--part=parallel" in shared
    assert "-n" in shared
    assert lane[1:] == ["-m", "pytest", "--part=ray", "-x"]
