"""The table of all rules, and the check of a configuration against it."""

from __future__ import annotations

from collections.abc import Collection

from rlhf_ray.config.rules.algorithm import ALGORITHM_RULES
from rlhf_ray.config.rules.batch import BATCH_RULES
from rlhf_ray.config.rules.deploy import DEPLOY_RULES
from rlhf_ray.config.rules.evaluation import EVALUATION_IN_TRAINING_RULES, EVALUATION_RULES
from rlhf_ray.config.rules.fit import FIT_RULES
from rlhf_ray.config.rules.generation import GENERATION_RULES
from rlhf_ray.config.rules.lora import LORA_RULES
from rlhf_ray.config.rules.parallelism.tensor import TENSOR_RULES
from rlhf_ray.config.rules.preference import PREFERENCE_RULES
from rlhf_ray.config.rules.prepare import PREPARE_RULES
from rlhf_ray.config.rules.reward import REWARD_RULES
from rlhf_ray.config.rules.rollout_selection import ROLLOUT_SELECTION_RULES
from rlhf_ray.config.rules.rule import Rule
from rlhf_ray.config.rules.run import RUN_RULES
from rlhf_ray.config.rules.training import TRAINING_RULES
from rlhf_ray.config.rules.workers.recovery import RECOVERY_RULES
from rlhf_ray.config.run import Config

# One tuple per file. Problems are listed in this order.
ALL_RULES: tuple[Rule, ...] = (
    *RUN_RULES,
    *PREPARE_RULES,
    *BATCH_RULES,
    *TENSOR_RULES,
    *ROLLOUT_SELECTION_RULES,
    *ALGORITHM_RULES,
    *GENERATION_RULES,
    *TRAINING_RULES,
    *REWARD_RULES,
    *DEPLOY_RULES,
    *LORA_RULES,
    *RECOVERY_RULES,
    *FIT_RULES,
    *PREFERENCE_RULES,
    *EVALUATION_RULES,
    *EVALUATION_IN_TRAINING_RULES,
)


def cross_field_problems(config: Config, *, without: Collection[str] = ()) -> list[str]:
    """Check the rules of the stage; returns a sentence for every violation.

    Args:
        without: keys with a refused value; rules that read them are skipped.
    """
    return [
        problem
        for rule in ALL_RULES
        if config.stage.name in rule.stages and not any(_reads(rule, key) for key in without)
        for problem in rule.problems(config)
    ]


def _reads(rule: Rule, key: str) -> bool:
    return any(key == name or key.startswith(name + ".") for name in rule.keys)
