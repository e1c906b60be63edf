"""stage=evaluate: models next to each other on held-out prompts."""

from __future__ import annotations

from rlhf_ray.cluster.resource_plan import describe
from rlhf_ray.cluster.roles.run_roles import resource_plan
from rlhf_ray.config.run import Config
from rlhf_ray.stages.request_checks import check_request
from rlhf_ray.stages.stage import Stage, run_in


def _describe(config: Config) -> str:
    models = "\n".join(f"{name}: {path}" for name, path in config.evaluation.models.items())
    return f"# Models\n{models}\n\n# Placement\n{describe(resource_plan(config))}"


STAGE = Stage(
    name="evaluate",
    describe=_describe,
    run=run_in("rlhf_ray.stages.evaluate.run"),
    check=check_request,
)
