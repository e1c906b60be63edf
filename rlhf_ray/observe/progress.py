"""Progress displays of a run."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Protocol, TextIO

from rlhf_ray.observe.facts import ROLLOUT_FACTS, Facts, StepFacts, duration


class Progress(Protocol):
    """Shows the progress of a run. Every method returns at once, and none raises."""

    def expect(self, num_steps: int) -> None:
        """Set the number of steps, if it was not known at the start."""
        ...

    def phase(self, name: str) -> None:
        """The run enters a phase, such as "starting workers" or "generate"."""
        ...

    def message(self, text: str) -> None:
        """Show a sentence or table that stays on the screen."""
        ...

    def step_done(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step, counted from 1, has ended with these metrics."""
        ...

    def close(self) -> None:
        """End the display and restore the screen. Safe to call twice."""
        ...


def make_progress(
    mode: str, num_steps: int, stream: TextIO, facts: Facts = ROLLOUT_FACTS
) -> Progress:
    """Make the display for `observe.progress`: auto, live, plain or off.

    auto means live on a terminal that can move its cursor, and plain otherwise.
    """
    if mode == "auto":
        can_move = stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
        mode = "live" if can_move else "plain"
    if mode == "live":
        from rlhf_ray.observe.live import LiveProgress

        return LiveProgress(num_steps, stream, facts)
    if mode == "plain":
        return PlainProgress(num_steps, stream, facts)
    if mode == "off":
        return OffProgress()
    raise ValueError(f"progress is {mode!r}; it must be one of auto, live, plain, off")


class OffProgress:
    """Shows nothing."""

    def expect(self, num_steps: int) -> None:
        pass

    def phase(self, name: str) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def step_done(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class PlainProgress:
    """One line per step, for logs. Phases are shown until the first step has ended."""

    def __init__(self, num_steps: int, stream: TextIO, facts: Facts = ROLLOUT_FACTS) -> None:
        self._facts = StepFacts(num_steps, facts)
        self._stream = stream
        self._started = time.monotonic()
        self._phase = ""

    def expect(self, num_steps: int) -> None:
        self._facts.num_steps = num_steps

    def phase(self, name: str) -> None:
        if self._facts.step == 0 and name != self._phase:
            self._print(f"[{duration(time.monotonic() - self._started)}] {name}")
        self._phase = name

    def message(self, text: str) -> None:
        self._print(text)

    def step_done(self, step: int, metrics: Mapping[str, float]) -> None:
        self._facts.step_done(step, metrics)
        self._print("  ".join([f"step {step}/{self._facts.num_steps}", *self._facts.parts()]))

    def close(self) -> None:
        self._stream.flush()

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)
