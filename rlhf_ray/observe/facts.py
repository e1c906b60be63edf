"""Numbers of a step that the progress display shows."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

_AVERAGED_STEPS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Choice of the numbers to show.

    Attributes:
        numbers: label, metric and number format of each.
        tokens: metric with the number of tokens of a step.
    """

    numbers: tuple[tuple[str, str, str], ...]
    tokens: str


# Reward, and the largest log-probability gap of the last probe.
ROLLOUT_FACTS = Facts(
    numbers=(("reward", "reward/mean", ".3f"), ("gap", "publish/probe_gap_max", ".1e")),
    tokens="tokens/generated",
)


# Loss of the step, and loss of the held-out rows if the step evaluated them.
FIT_FACTS = Facts(
    numbers=(("loss", "train/loss", ".3f"), ("held-out", "eval/loss", ".3f")),
    tokens="tokens/trained",
)


class StepFacts:
    """The chosen numbers of the last step as text; a dash for an unknown one."""

    def __init__(self, num_steps: int, facts: Facts) -> None:
        self.num_steps = num_steps
        self._facts = facts
        self.step = 0
        self._metrics: Mapping[str, float] = {}
        self._step_times_s: deque[float] = deque(maxlen=_AVERAGED_STEPS)

    def step_done(self, step: int, metrics: Mapping[str, float]) -> None:
        self.step = step
        self._metrics = metrics
        if "time/step_s" in metrics:
            self._step_times_s.append(metrics["time/step_s"])

    def parts(self) -> list[str]:
        """The numbers of `Facts`, tokens per second, time left."""
        return [
            *(f"{label} {self._value(name, form)}" for label, name, form in self._facts.numbers),
            f"{self._tokens_per_second()} tokens/s",
            f"left {self._time_left()}",
        ]

    def _value(self, name: str, form: str) -> str:
        return format(self._metrics[name], form) if name in self._metrics else "-"

    def _tokens_per_second(self) -> str:
        names = (self._facts.tokens, "time/step_s")
        if any(name not in self._metrics for name in names):
            return "-"
        tokens, seconds = (self._metrics[name] for name in names)
        return f"{tokens / seconds:.0f}" if seconds > 0 else "-"

    def _time_left(self) -> str:
        if not self._step_times_s:
            return "-"
        steps_left = max(self.num_steps - self.step, 0)
        return duration(steps_left * statistics.fmean(self._step_times_s))


def duration(seconds: float) -> str:
    """Minutes and seconds, hours where needed: 2:05, 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
