"""stage=preference: a policy learns from rankings or feedback, without a reward model."""

from __future__ import annotations

from rlhf_ray.config.run import Config
from rlhf_ray.stages.fit.space import describe_fit
from rlhf_ray.stages.request_checks import check_training
from rlhf_ray.stages.stage import Stage


def _run(config: Config) -> int:
    from rlhf_ray.batching.rank_plan import rank_plan
    from rlhf_ray.stages.fit.preference_rows import feedback_stage, rankings_stage
    from rlhf_ray.stages.fit.run import run_fit

    if config.preference.is_of_feedback:
        return run_fit(config, feedback_stage())
    return run_fit(config, rankings_stage(rank_plan(config.training)))


STAGE = Stage(name="preference", describe=describe_fit, run=_run, check=check_training)
