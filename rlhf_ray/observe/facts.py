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
        optional: like `numbers`, of parts that not every run has; shown where they are measured.
        nonzero: like `optional`, shown where they are not 0.
    """

    numbers: tuple[tuple[str, str, str], ...]
    tokens: str
    optional: tuple[tuple[str, str, str], ...] = ()
    nonzero: tuple[tuple[str, str, str], ...] = ()


# Reward, and the largest log-probability gap of the last probe.
ROLLOUT_FACTS = Facts(
    numbers=(("reward", "reward/mean", ".3f"), ("gap", "publish/probe_gap_max", ".1e")),
    tokens="tokens/generated",
    # The KL divergence of an answer, summed over its tokens.
    optional=(("KL/answer", "kl/reference", ".3g"), ("value loss", "value/loss", ".3g")),
    nonzero=(("staleness", "rollout/staleness_max", ".0f"),),
)


# Loss of the step, and loss of the held-out rows if the step evaluated them.
FIT_FACTS = Facts(
    numbers=(("loss", "train/loss", ".3f"), ("held-out", "eval/loss", ".3f")),
    tokens="tokens/trained",
    # Of stages on preferences: a reward model's margin of scores, a policy's of implicit rewards.
    optional=(
        ("accuracy", "train/accuracy", ".3f"),
        ("margin", "train/margin", ".3g"),
        ("margin", "train/reward_margin", ".3g"),
    ),
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
        """The numbers of `Facts`, the warm-up of a critic, tokens per second, time left."""
        metrics, facts = self._metrics, self._facts
        shown = [
            *facts.numbers,
            *(number for number in facts.optional if number[1] in metrics),
            *(number for number in facts.nonzero if metrics.get(number[1])),
        ]
        return [
            *(f"{label} {self._value(name, form)}" for label, name, form in shown),
            *(["critic warm-up"] if is_critic_warmup(metrics) else []),
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


def is_critic_warmup(metrics: Mapping[str, float]) -> bool:
    """Whether a step trained the critic and, because of its warm-up, not the policy."""
    return "value/loss" in metrics and "policy/learning_rate" not in metrics


def duration(seconds: float) -> str:
    """Minutes and seconds, hours where needed: 2:05, 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
