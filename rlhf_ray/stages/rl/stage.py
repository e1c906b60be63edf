"""stage=rl: a policy learns from rewards."""

from __future__ import annotations

from rlhf_ray.stages.request_checks import check_training
from rlhf_ray.stages.stage import Stage, describe_training, run_in

STAGE = Stage(
    name="rl",
    describe=describe_training,
    run=run_in("rlhf_ray.stages.rl.run"),
    check=check_training,
)
