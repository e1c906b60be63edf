"""stage=rl: a policy learns from rewards."""

from __future__ import annotations

from rlhf_ray.config.errors import GatheredProblems
from rlhf_ray.config.run import Config
from rlhf_ray.stages.request_checks import check_request
from rlhf_ray.stages.sizes.gpu_memory import check_gpu_memory, memory_lines
from rlhf_ray.stages.sizes.model_size import local_model
from rlhf_ray.stages.sizes.snapshots import snapshot_lines
from rlhf_ray.stages.stage import Stage, describe_training, run_in


def _describe(config: Config) -> str:
    lines = memory_lines(config, local_model(config.model.path))
    recovery = snapshot_lines(config)
    return "\n".join(
        [
            describe_training(config),
            *(["\n# GPUs"] if lines else []),
            *lines,
            *(["\n# Recovery"] if recovery else []),
            *recovery,
        ]
    )


def _check(config: Config) -> None:
    problems = GatheredProblems()
    with problems.gathered():
        check_request(config)
    with problems.gathered():
        check_gpu_memory(config, local_model(config.model.path))
    problems.refuse()


STAGE = Stage(name="rl", describe=_describe, run=run_in("rlhf_ray.stages.rl.run"), check=_check)
