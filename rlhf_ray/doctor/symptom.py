"""Findings of the doctor, and the machine that it looks at."""

from __future__ import annotations

import enum
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


class Severity(enum.Enum):
    """The harm that a finding does."""

    FINE = "ok"
    SLOW = "slow"
    BROKEN = "bad"


@dataclass(frozen=True, kw_only=True, slots=True)
class Symptom:
    """One thing that was looked at.

    Attributes:
        what: the thing and its value.
        advice: what to do about it; empty if it is fine.
    """

    what: str
    severity: Severity = Severity.FINE
    advice: str = ""

    def __str__(self) -> str:
        line = f"[{self.severity.value:>4}] {self.what}"
        return f"{line}\n         {self.advice}" if self.advice else line


def fine(what: str) -> Symptom:
    """A finding that hurts nothing."""
    return Symptom(what=what)


def slow(what: str, advice: str) -> Symptom:
    """A finding that costs time or will hurt some runs."""
    return Symptom(what=what, severity=Severity.SLOW, advice=advice)


def broken(what: str, advice: str) -> Symptom:
    """A finding that will end a run."""
    return Symptom(what=what, severity=Severity.BROKEN, advice=advice)


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The places that looks read, so that a test can give others.

    Attributes:
        root: of the file system.
        environ: environment variables.
        output: the output of a program, or None if it fails or is not there within its deadline.
    """

    root: Path
    environ: Mapping[str, str]
    output: Callable[[Sequence[str], float], str | None]

    def text(self, path: str) -> str | None:
        """The text of a file below the root, stripped; None if it cannot be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def paths(self, pattern: str) -> list[Path]:
        """Files and folders below the root, sorted."""
        return sorted(self.root.glob(pattern))


def output_of(command: Sequence[str], timeout_s: float) -> str | None:
    """The output of a program; None if it is missing, fails, or takes longer."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None
