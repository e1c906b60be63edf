"""Scenarios of weights that follow others: a reference that moves, an average of the policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.stack.training.average_scenarios import (
    average_that_was_not_saved,
    averaged,
    plain_steps,
)
from tests.stack.training.moving_scenarios import (
    moved,
    other_ranks_checkpoint,
    refused_buckets,
)
from tests.stack.training.rank import Rank

Scenario = Callable[[Rank], dict[str, Any]]


def _moved(prefix: str, **settings: Any) -> dict[str, Scenario]:
    return {
        f"{prefix}_zero_{stage}": lambda r, stage=stage: moved(
            r, name=f"{prefix}_{stage}", zero_stage=stage, **settings
        )
        for stage in (0, 3)
    }


def _averaged(prefix: str, stages: tuple[int, ...], **settings: Any) -> dict[str, Scenario]:
    return {
        f"{prefix}_zero_{stage}": lambda r, stage=stage: averaged(
            r, name=f"{prefix}_zero_{stage}", zero_stage=stage, **settings
        )
        for stage in stages
    }


_BOTH: dict[str, Scenario] = {
    **_moved("moved", decay=0.0),
    **_moved("averaged", decay=0.9),
    **_moved("averaged_bfloat16", decay=0.9, dtype="bfloat16"),
    "refused_buckets": refused_buckets,
    "moved_other_stage": other_ranks_checkpoint,
    **_averaged("average", (0, 2, 3)),
    "no_average_saved": average_that_was_not_saved,
}

FOLLOWING: dict[int, dict[str, Scenario]] = {
    1: _BOTH,
    2: {
        **_BOTH,
        **_averaged("average", (1,)),
        **_averaged("average_bfloat16", (0, 3), dtype="bfloat16"),
        "no_average_zero_0": plain_steps,
        "no_average_zero_3": lambda r: plain_steps(r, zero_stage=3),
    },
}
