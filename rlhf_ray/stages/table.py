"""Which stages there are. Each is imported only when it is chosen."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from rlhf_ray.config.run import Config

# Each has a function `run(config) -> exit status`.
STAGES: dict[str, str] = {
    "chat": "rlhf_ray.stages.deploy.chat",
    "compress": "rlhf_ray.stages.deploy.compress",
    "evaluate": "rlhf_ray.stages.evaluate.run",
    "export": "rlhf_ray.stages.deploy.export",
    "pipeline": "rlhf_ray.stages.pipeline",
    "plan": "rlhf_ray.stages.plan",
    "preference": "rlhf_ray.stages.fit.preference",
    "prepare_data": "rlhf_ray.stages.prepare_data",
    "pretrain": "rlhf_ray.stages.fit.pretrain",
    "reward_model": "rlhf_ray.stages.fit.reward_model",
    "rl": "rlhf_ray.stages.rl.run",
    "serve": "rlhf_ray.stages.deploy.serve",
    "serve_reward": "rlhf_ray.stages.deploy.serve_reward",
    "sft": "rlhf_ray.stages.fit.sft",
}


def import_stage(name: str) -> Callable[[Config], int]:
    """The function that runs a stage; with it comes everything heavy that the stage needs."""
    return importlib.import_module(STAGES[name]).run
