"""Splitting over stages and over training and evaluation, by the content of a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_ray.config.groups.prepare_sources import STAGE_KINDS, PreparedSource
from rlhf_ray.data.prepare.conversion.contents import Content
from rlhf_ray.data.prepare.store import number_of

TRAIN_PART, EVAL_PART = "train", "eval"
_WHOLE = 2.0**63


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """Destination of a sample.

    Attributes:
        dataset: folder in the output: a stage's name, or a kind.
        kind: kind of sample in that folder.
        part: `TRAIN_PART` or `EVAL_PART`.
    """

    dataset: str
    kind: str
    part: str


class Router:
    """Divides samples over stages and over training and evaluation.

    Both depend only on the first question of a sample (or on its text). So a sample does not move
    when other samples come or go, and samples of one question stay together: no question of a
    training set is in an evaluation set or in another stage.

    Args:
        split: shares of the stages; () for one set for each kind.
    """

    def __init__(self, *, split: Sequence[float], eval_fraction: float, seed: int) -> None:
        self._split = tuple(split)
        self._eval_fraction = eval_fraction
        self._seed = seed

    def route(self, content: Content, source: PreparedSource) -> Route:
        identity = " ".join(content.opening().casefold().split())
        is_eval = number_of(self._seed, "part", identity) / _WHOLE < self._eval_fraction
        part = EVAL_PART if is_eval else TRAIN_PART
        shares = source.split or self._split
        if not shares:
            return Route(dataset=source.kind, kind=source.kind, part=part)
        stage = _pick(shares, number_of(self._seed, "stage", identity) / _WHOLE)
        return Route(dataset=stage, kind=STAGE_KINDS[stage], part=part)


def routes_of(source: PreparedSource, split: Sequence[float]) -> list[tuple[str, str]]:
    """All (data set, kind) that samples of a source can go to."""
    shares = source.split or tuple(split)
    if not shares:
        return [(source.kind, source.kind)]
    return [
        (stage, kind)
        for (stage, kind), share in zip(STAGE_KINDS.items(), shares, strict=True)
        if share > 0
    ]


def _pick(shares: Sequence[float], position: float) -> str:
    """The stage whose interval of [0, 1) contains the position."""
    stages = [(stage, share) for stage, share in zip(STAGE_KINDS, shares, strict=True) if share > 0]
    left = position * sum(share for _, share in stages)
    for stage, share in stages:
        left -= share
        if left < 0:
            return stage
    return stages[-1][0]
