"""The output folder of a run: its configuration, the screen and the display of progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rlhf_ray.observe.facts import ROLLOUT_FACTS, Facts
from rlhf_ray.observe.output_capture import quiet_driver
from rlhf_ray.observe.progress import Progress, make_progress


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOutput:
    """An output folder that is open.

    Attributes:
        screen: the real standard output; what libraries print goes to a file of the folder.
    """

    folder: Path
    screen: TextIO
    progress: Progress

    def finish(self, text: str) -> None:
        """End the display and print the last words of the run."""
        self.progress.close()
        print(text, file=self.screen, flush=True)


@contextmanager
def opened_output(
    folder: Path, configuration: str, *, display: str, num_steps: int, facts: Facts = ROLLOUT_FACTS
) -> Iterator[RunOutput]:
    """Make the folder, write config.yaml, take the screen, show progress.

    Args:
        configuration: the text of config.yaml.
        display: see `observe.progress`.
        num_steps: 0 where the number is not known yet; see `Progress.expect`.
        facts: the numbers that the display shows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(configuration, encoding="utf-8")
    with quiet_driver(folder) as screen:
        progress = make_progress(display, num_steps, screen, facts)
        try:
            yield RunOutput(folder=folder, screen=screen, progress=progress)
        finally:
            progress.close()
