"""Blending: how many samples of each source go into a training set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_ray.config.groups.prepare_sources import PreparedSource


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """Samples that one source gives to one training set.

    Attributes:
        available: samples of the source.
        wanted: samples that its weight asks for; equal to `drawn` if it has no weight.
        drawn: samples taken, repetitions included.
    """

    available: int
    wanted: int
    drawn: int

    @property
    def epochs(self) -> float:
        """Average number of times that a sample of the source is used."""
        return self.drawn / self.available


def blend(
    available: Mapping[str, int],
    sources: Sequence[PreparedSource],
    *,
    total: int | None,
    max_epochs: float,
) -> dict[str, Draw]:
    """Compute the draw of each source.

    Without weights every source is repeated `max_epochs` times, up to its own `max_samples`. With
    weights the draws are in proportion to them: `total` samples in all or, without a total, as
    many as the source that is exhausted first allows. A source with too few samples for `total`
    gives all that it has. No other source makes up for it, because that would change the
    proportions of the rest.

    Args:
        available: samples by name of source; sources without samples are left out.
        max_epochs: default for sources that set none.
    """
    present = [source for source in sources if available.get(source.name, 0) > 0]
    caps = {source.name: _cap(source, available[source.name], max_epochs) for source in present}
    weights = {source.name: source.weight for source in present if source.weight is not None}
    if not weights:
        return {
            name: Draw(available=available[name], wanted=cap, drawn=cap)
            for name, cap in caps.items()
        }
    whole = sum(weights.values())
    if total is None:
        # The largest blend for which wanted <= cap holds for every source.
        size = min(caps[name] * whole / weight for name, weight in weights.items())
        wanted = {name: int(size * weight / whole + 1e-9) for name, weight in weights.items()}
    else:
        wanted = _rounded({name: total * weight / whole for name, weight in weights.items()}, total)
    return {
        name: Draw(available=available[name], wanted=count, drawn=min(count, caps[name]))
        for name, count in wanted.items()
    }


def _cap(source: PreparedSource, available: int, max_epochs: float) -> int:
    epochs = max_epochs if source.max_epochs is None else source.max_epochs
    cap = max(1, int(available * epochs + 1e-9))
    return cap if source.max_samples is None else min(cap, source.max_samples)


def _rounded(exact: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers with the same sum: the largest remainders are rounded up (Hamilton)."""
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
