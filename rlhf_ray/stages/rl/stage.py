"""stage=rl: a policy learns from rewards."""

from __future__ import annotations

from rlhf_ray.config.run import Config
from rlhf_ray.stages.stage import Stage, describe_training


def _run(config: Config) -> int:
    from rlhf_ray.stages.rl.run import run

    return run(config)


STAGE = Stage(name="rl", describe=describe_training, run=_run)
