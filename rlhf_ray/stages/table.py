"""The stages by name. Each is imported only when it is chosen."""

from __future__ import annotations

import importlib

from rlhf_ray.stages.stage import Stage

# Each module has an object `STAGE`.
STAGES: dict[str, str] = {
    "chat": "rlhf_ray.stages.deploy.chat",
    "compress": "rlhf_ray.stages.deploy.compress",
    "evaluate": "rlhf_ray.stages.evaluate.stage",
    "export": "rlhf_ray.stages.deploy.export",
    "pipeline": "rlhf_ray.stages.pipeline",
    "plan": "rlhf_ray.stages.plan",
    "preference": "rlhf_ray.stages.fit.preference",
    "prepare_data": "rlhf_ray.stages.prepare_data",
    "pretrain": "rlhf_ray.stages.fit.pretrain",
    "reward_model": "rlhf_ray.stages.fit.reward_model",
    "rl": "rlhf_ray.stages.rl.stage",
    "serve": "rlhf_ray.stages.deploy.serve",
    "serve_reward": "rlhf_ray.stages.deploy.serve_reward",
    "sft": "rlhf_ray.stages.fit.sft",
}


def load_stage(name: str) -> Stage:
    """The stage of this name."""
    return importlib.import_module(STAGES[name]).STAGE
