"""Progress display on a terminal: three lines that are redrawn in place."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlhf_ray.observe.facts import ROLLOUT_FACTS, Facts, StepFacts, duration

_REFRESHES_PER_SECOND = 4


class LiveProgress:
    """Shows a bar, numbers and the current phase with its time; messages scroll above them."""

    def __init__(self, num_steps: int, stream: TextIO, facts: Facts = ROLLOUT_FACTS) -> None:
        self._facts = StepFacts(num_steps, facts)
        self._started = time.monotonic()
        self._phase = "starting"
        self._phase_started = self._started
        console = Console(file=stream, force_terminal=True, highlight=False)
        self._live = Live(
            get_renderable=self._render,
            console=console,
            refresh_per_second=_REFRESHES_PER_SECOND,
            # Library output goes to a file (`output_capture.py`); rich must not bring it back.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def expect(self, num_steps: int) -> None:
        self._facts.num_steps = num_steps

    def phase(self, name: str) -> None:
        if name != self._phase:
            self._phase, self._phase_started = name, time.monotonic()

    def message(self, text: str) -> None:
        self._live.console.print(text, markup=False)

    def step_done(self, step: int, metrics: Mapping[str, float]) -> None:
        self._facts.step_done(step, metrics)

    def close(self) -> None:
        self._live.stop()

    def _render(self) -> RenderableType:
        facts, now = self._facts, time.monotonic()
        # A grid shrinks on a narrow terminal; the bar, which has the only ratio, shrinks first.
        bar = Table.grid(expand=True, padding=(0, 1))
        bar.add_column(no_wrap=True, overflow="ellipsis")
        bar.add_column(ratio=1)
        bar.add_row(
            Text(f"step {facts.step}/{facts.num_steps}", style="bold"),
            ProgressBar(total=max(facts.num_steps, 1), completed=facts.step),
        )
        in_phase, in_run = now - self._phase_started, now - self._started
        return Group(
            bar,
            _line("  ".join(facts.parts())),
            _line(f"{self._phase} {duration(in_phase)}  run {duration(in_run)}", style="dim"),
        )


def _line(text: str, style: str = "") -> Text:
    """A line that is cut at the terminal's width, never wrapped."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
