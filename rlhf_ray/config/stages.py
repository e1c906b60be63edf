"""The table of stages: names, modules and kinds. Every list of stages is derived from it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class StageKind(enum.Enum):
    """Traits that rules and other stages ask for; a stage may have none or several."""

    DATA = "writes data files"
    FIT = "learns from examples, on the ranks of `training` alone"
    RL = "reinforcement learning, or its plan"
    EVALUATION = "evaluates models and trains none"
    MODEL_FILES = "works on the files of one model"
    SERVICE = "answers over HTTP until it is stopped"
    SERVER = "starts vLLM's server"


@dataclass(frozen=True, slots=True)
class StageEntry:
    """One stage.

    Attributes:
        name: as in `stage=NAME`.
        module: dotted name of the module with the object `STAGE`.
        kinds: the stage's traits.
    """

    name: str
    module: str
    kinds: tuple[StageKind, ...]


# In the order of their use. `plan` prints what `rl` would be.
STAGES: dict[str, StageEntry] = {
    entry.name: entry
    for entry in (
        StageEntry("prepare_data", "rlhf_ray.stages.prepare_data", (StageKind.DATA,)),
        StageEntry("pretrain", "rlhf_ray.stages.fit.pretrain", (StageKind.FIT,)),
        StageEntry("sft", "rlhf_ray.stages.fit.sft", (StageKind.FIT,)),
        StageEntry("reward_model", "rlhf_ray.stages.fit.reward_model", (StageKind.FIT,)),
        StageEntry("preference", "rlhf_ray.stages.fit.preference", (StageKind.FIT,)),
        StageEntry("rl", "rlhf_ray.stages.rl.stage", (StageKind.RL,)),
        StageEntry("evaluate", "rlhf_ray.stages.evaluate.stage", (StageKind.EVALUATION,)),
        StageEntry("compress", "rlhf_ray.stages.deploy.compress", (StageKind.MODEL_FILES,)),
        StageEntry("export", "rlhf_ray.stages.deploy.export", (StageKind.MODEL_FILES,)),
        StageEntry("serve_reward", "rlhf_ray.stages.deploy.serve_reward", (StageKind.SERVICE,)),
        StageEntry("serve", "rlhf_ray.stages.deploy.serve", (StageKind.SERVICE, StageKind.SERVER)),
        StageEntry("chat", "rlhf_ray.stages.deploy.chat", (StageKind.SERVER,)),
        StageEntry("pipeline", "rlhf_ray.stages.pipeline", ()),
        StageEntry("plan", "rlhf_ray.stages.plan", (StageKind.RL,)),
    )
}
STAGE_NAMES = tuple(STAGES)


def _of(*kinds: StageKind) -> tuple[str, ...]:
    """Names of the stages of the first kind, then of the second, each name once."""
    found = (name for kind in kinds for name, entry in STAGES.items() if kind in entry.kinds)
    return tuple(dict.fromkeys(found))


DATA_STAGES = _of(StageKind.DATA)
FIT_STAGES = _of(StageKind.FIT)
RL_STAGES = _of(StageKind.RL)
EVALUATION_STAGES = _of(StageKind.EVALUATION)
# Stages that train a model.
TRAINING_STAGES = _of(StageKind.RL, StageKind.FIT)
# Stages that start DeepSpeed roles.
DEEPSPEED_STAGES = _of(StageKind.RL, StageKind.FIT, StageKind.EVALUATION)
# Stages that sample answers and score them.
SCORING_STAGES = _of(StageKind.RL, StageKind.EVALUATION)
# Stages whose every run has workers in Ray.
RAY_STAGES = tuple(name for name in DEEPSPEED_STAGES if name != "plan")
SERVICE_STAGES = _of(StageKind.SERVICE)
SERVER_STAGES = _of(StageKind.SERVER)
# Stages whose only model is the one at `model.path`.
ONE_MODEL_STAGES = _of(StageKind.SERVER, StageKind.MODEL_FILES)
# Stages that end only when they are told to.
ENDLESS_STAGES = _of(StageKind.SERVICE, StageKind.SERVER)
