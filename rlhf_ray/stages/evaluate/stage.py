"""stage=evaluate: models next to each other on held-out prompts."""

from __future__ import annotations

from rlhf_ray.cluster.resource_plan import describe
from rlhf_ray.config.run import Config
from rlhf_ray.stages.stage import Stage, resource_plan


def _describe(config: Config) -> str:
    models = "\n".join(f"{name}: {path}" for name, path in config.evaluation.models.items())
    return f"# Models\n{models}\n\n# Placement\n{describe(resource_plan(config))}"


def _run(config: Config) -> int:
    from rlhf_ray.stages.evaluate.run import run

    return run(config)


STAGE = Stage(name="evaluate", describe=_describe, run=_run)
