"""Cross-field rules: all of them, and what a configuration breaks."""

from __future__ import annotations

from collections.abc import Collection

from rlhf_ray.config.rules.algorithm import ALGORITHM_RULES
from rlhf_ray.config.rules.batch import BATCH_RULES
from rlhf_ray.config.rules.deploy import COMPRESS_RULES, EXPORT_RULES, SERVE_RULES
from rlhf_ray.config.rules.evaluation import EVALUATION_RULES
from rlhf_ray.config.rules.evaluation_in_training import EVALUATED_TRAINING_RULES
from rlhf_ray.config.rules.fit import EXAMPLES_RULES, FIT_RULES, REWARD_MODEL_RULES
from rlhf_ray.config.rules.generation import GENERATION_RULES
from rlhf_ray.config.rules.lora import ADAPTED_RULES
from rlhf_ray.config.rules.preference import PREFERENCE_RULES
from rlhf_ray.config.rules.prepare import PREPARE_RULES
from rlhf_ray.config.rules.reward import HTTP_REWARD_RULES, JUDGE_RULES, MODEL_REWARD_RULES
from rlhf_ray.config.rules.rule import Rule
from rlhf_ray.config.rules.run import PIPELINE_RULES, RUN_RULES
from rlhf_ray.config.rules.sampling import SAMPLING_RULES, TEXT_RULES
from rlhf_ray.config.rules.training import TRAINING_RULES
from rlhf_ray.config.run import Config

ALL_RULES: tuple[Rule, ...] = (
    RUN_RULES
    + PREPARE_RULES
    + BATCH_RULES
    + SAMPLING_RULES
    + ALGORITHM_RULES
    + TEXT_RULES
    + GENERATION_RULES
    + TRAINING_RULES
    + MODEL_REWARD_RULES
    + HTTP_REWARD_RULES
    + JUDGE_RULES
    + SERVE_RULES
    + ADAPTED_RULES
    + EXAMPLES_RULES
    + FIT_RULES
    + REWARD_MODEL_RULES
    + PREFERENCE_RULES
    + EVALUATION_RULES
    + COMPRESS_RULES
    + EXPORT_RULES
    + EVALUATED_TRAINING_RULES
    + PIPELINE_RULES
)


def cross_field_problems(config: Config, *, without: Collection[str] = ()) -> list[str]:
    """Sentences for every rule of its stage that `config` breaks.

    Args:
        without: keys whose value is not to be trusted; rules that read them are left out.
    """
    return [
        problem
        for rule in ALL_RULES
        if config.stage.name in rule.stages and not any(_reads(rule, key) for key in without)
        for problem in rule.problems(config)
    ]


def _reads(rule: Rule, key: str) -> bool:
    return any(key == name or key.startswith(name + ".") for name in rule.keys)
