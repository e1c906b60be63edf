"""The comparisons of a benchmark: ratios first, each with its aim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.publish import KINDS


@dataclass(frozen=True, kw_only=True, slots=True)
class Aim:
    """A figure that is aimed at: the ratio of two sums of medians, or one sum.

    Attributes:
        over, under: names of measured figures; `under` is empty where the aim is not a ratio.
        sign: "<=" or ">=".
        unit: of a figure that is no ratio.
    """

    words: str
    over: tuple[str, ...]
    under: tuple[str, ...] = ()
    sign: str
    limit: float
    unit: str = ""

    def line(self, medians: Mapping[str, float]) -> str | None:
        """The figure next to its aim; None where it has not been measured."""
        if not {*self.over, *self.under} <= medians.keys():
            return None
        value = sum(medians[name] for name in self.over)
        if self.under:
            value /= sum(medians[name] for name in self.under)
        is_met = value <= self.limit if self.sign == "<=" else value >= self.limit
        unit = f" {self.unit}" if self.unit else ""
        verdict = "met" if is_met else "missed"
        return f"{self.words}: {value:.2f}{unit} (aim: {self.sign} {self.limit:g}{unit}; {verdict})"


AIMS = (
    Aim(
        words="step / (raw generation + raw training)",
        over=("step_s",),
        under=("raw_generate_s", "raw_train_s"),
        sign="<=",
        limit=1.15,
    ),
    Aim(
        words="TRL's step / step",
        over=("trl_step_s",),
        under=("step_s",),
        sign=">=",
        limit=1.8,
    ),
    Aim(
        words="natural lengths, time per token: TRL / this project",
        over=("trl_natural_ms_per_token",),
        under=("natural_ms_per_token",),
        sign=">=",
        limit=3.0,
    ),
    Aim(
        words="asynchronous step / synchronous step, one core each",
        over=("asynchronous_step_s",),
        under=("synchronous_step_s",),
        sign="<=",
        limit=0.6,
    ),
    Aim(
        words="driver CPU per group: 512 engines / 8 engines",
        over=("driver_ms_512",),
        under=("driver_ms_8",),
        sign="<=",
        limit=1.2,
    ),
    *(
        Aim(
            words=f"publishing without the probe, {kind}",
            over=(f"publish_{kind}_s",),
            sign="<=",
            limit=0.6,
            unit="s",
        )
        for kind in KINDS
    ),
    Aim(
        words="publishing with the probe",
        over=("publish_s",),
        sign="<=",
        limit=1.5,
        unit="s",
    ),
    Aim(words="start-up", over=("startup_s",), sign="<=", limit=25.0, unit="s"),
    Aim(
        words="overhead per step, tiny model",
        over=("overhead_s",),
        sign="<=",
        limit=0.15,
        unit="s",
    ),
)


def comparisons(medians: Mapping[str, float]) -> list[str]:
    """A line for every aim whose figures were measured; ratios come first."""
    ratios = [aim for aim in AIMS if aim.under]
    others = [aim for aim in AIMS if not aim.under]
    lines = [aim.line(medians) for aim in (*ratios, *others)]
    return [line for line in lines if line is not None]
