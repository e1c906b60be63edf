"""stage=sft: the answers of demonstrations are predicted."""

from __future__ import annotations

from rlhf_ray.config.run import Config
from rlhf_ray.stages.stage import Stage, describe_training


def _run(config: Config) -> int:
    from rlhf_ray.cluster.roles.fit import SftActor
    from rlhf_ray.data.examples import load_demonstrations
    from rlhf_ray.objectives.text import spread_samples
    from rlhf_ray.stages.fit.inputs import FitStage
    from rlhf_ray.stages.fit.run import run_fit

    return run_fit(
        config, FitStage(load=load_demonstrations, spread=spread_samples, actor_class=SftActor)
    )


STAGE = Stage(name="sft", describe=describe_training, run=_run)
