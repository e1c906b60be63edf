"""stage=compress: quantised and pruned forms of a model, with the cost of each."""

from __future__ import annotations

from rlhf_ray.config.run import Config
from rlhf_ray.stages.request_checks import check_request
from rlhf_ray.stages.stage import Stage, run_in


def _describe(config: Config) -> str:
    return f"# Forms of {config.model.path}\n{', '.join(config.compress.methods)}"


STAGE = Stage(
    name="compress",
    describe=_describe,
    run=run_in("rlhf_ray.stages.deploy.compress_run"),
    check=check_request,
)
