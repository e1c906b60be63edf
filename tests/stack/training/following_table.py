"""Table of the scenarios of EMAs: a reference that follows the policy, the EMA of the policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf_ray.config.deepspeed.zero import ZeroConfig
from tests.stack.training.ema_policy_scenarios import (
    ema_policy,
    ema_that_was_not_saved,
    plain_steps,
)
from tests.stack.training.ema_reference_scenarios import (
    ema_reference,
    other_stage_checkpoint,
    refused_buckets,
)
from tests.stack.training.rank import Rank

Scenario = Callable[[Rank], dict[str, Any]]

# All parameters are sharded: small ones would stay whole, and need no second copy.
_HPZ = ZeroConfig(hpz_partition_size=2, persistence_elements=0)


def _ema_references(prefix: str, **settings: Any) -> dict[str, Scenario]:
    return {
        f"{prefix}_zero_{stage}": lambda r, stage=stage: ema_reference(
            r, name=f"{prefix}_{stage}", zero_stage=stage, **settings
        )
        for stage in (0, 3)
    }


def _ema_policies(prefix: str, stages: tuple[int, ...], **settings: Any) -> dict[str, Scenario]:
    return {
        f"{prefix}_zero_{stage}": lambda r, stage=stage: ema_policy(
            r, name=f"{prefix}_zero_{stage}", zero_stage=stage, **settings
        )
        for stage in stages
    }


_BOTH: dict[str, Scenario] = {
    **_ema_references("moved", decay=0.0),
    **_ema_references("averaged", decay=0.9),
    **_ema_references("averaged_bfloat16", decay=0.9, dtype="bfloat16"),
    "refused_buckets": refused_buckets,
    "moved_other_stage": other_stage_checkpoint,
    **_ema_policies("average", (0, 2, 3)),
    "no_average_saved": ema_that_was_not_saved,
}

FOLLOWING: dict[int, dict[str, Scenario]] = {
    1: _BOTH,
    2: {
        **_BOTH,
        "moved_hpz": lambda r: ema_reference(
            r, name="moved_hpz", decay=0.0, zero_stage=3, zero=_HPZ
        ),
        **_ema_policies("average", (1,)),
        **_ema_policies("average_bfloat16", (0, 3), dtype="bfloat16"),
        "no_average_zero_0": plain_steps,
        "no_average_zero_3": lambda r: plain_steps(r, zero_stage=3),
    },
}
