"""The seconds of a start-up by part, from the command to the end of the first step."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_ray.atomic_file import write_atomically

FILE_NAME = "startup.json"
# In the order of a run. "command" is all that Python needs until the stage begins: the imports, the
# configuration and the cheap checks.
PARTS = ("command", "inputs", "ray", "workers", "roles", "gate", "step")
# The phase that begins on the screen where a part ends. Together they take a minute or more.
_PHASE_AFTER = {
    "ray": "start workers",
    "workers": "start models and engines",
    "roles": "publish the first weights",
}


class StartupClock:
    """Times the parts of a start-up, which follow each other without a gap.

    Args:
        follows: the process has done something else before; the clock starts now, and not at the
            creation of the process.

    Attributes:
        show_phase: takes the name of what begins, for the screen.
    """

    def __init__(self, *, follows: bool = False) -> None:
        self._begin = self._last = time.monotonic() - (0.0 if follows else process_age())
        self._parts: dict[str, float] = {}
        self._roles: dict[str, dict[str, float]] = {}
        self.show_phase: Callable[[str], None] = lambda _: None

    def done(self, part: str) -> None:
        """A part of `PARTS` ends here; it has begun where the one before it ended."""
        assert part in PARTS, part
        now = time.monotonic()
        self._parts[part] = self._parts.get(part, 0.0) + now - self._last
        self._last = now
        if part in _PHASE_AFTER:
            self.show_phase(_PHASE_AFTER[part])

    def role(self, name: str, part: str, seconds: float) -> None:
        """Note the slowest actor of a role; roles start side by side.

        Args:
            part: "load", from the actor's creation to its answer, or "start".
        """
        self._roles.setdefault(name, {})[f"{part}_s"] = seconds

    def values(self) -> dict[str, Any]:
        """The content of the file."""
        return {
            "total_s": round(self._last - self._begin, 3),
            "parts": {f"{name}_s": round(self._parts.get(name, 0.0), 3) for name in PARTS},
            "roles": {
                name: {part: round(seconds, 3) for part, seconds in parts.items()}
                for name, parts in self._roles.items()
            },
        }

    def finish(self, folder: Path, report: Callable[[str], None]) -> None:
        """End the part `step`: write `startup.json`, and say the seconds of every part."""
        self.done(PARTS[-1])
        write_atomically(folder / FILE_NAME, json.dumps(self.values(), indent=2) + "\n")
        parts = ", ".join(f"{name} {self._parts.get(name, 0.0):.1f}" for name in PARTS)
        report(
            f"start-up, to the end of the first step: {self._last - self._begin:.1f} s ({parts})"
        )


def process_age() -> float:
    """Seconds since this process was created."""
    # The name in parentheses may contain spaces. Field 22 counts from the boot.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    created = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - created)
