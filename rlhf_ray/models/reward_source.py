"""Settings of a reward model's source, and the check that it is a reward model."""

from __future__ import annotations

from dataclasses import replace

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.reward import ModelRewardConfig
from rlhf_ray.models.checks.config_file import load_model_config

KEY = "reward.model.path"


def reward_model_source(reward_model: ModelRewardConfig, model: ModelConfig) -> ModelConfig:
    """Settings of the reward model and its tokenizer; the rest as for the policy."""
    assert reward_model.path is not None, "without a path there is no reward model"
    return replace(
        model,
        path=reward_model.path,
        tokenizer_path=reward_model.tokenizer_path,
        chat_template=None,
    )


def check_reward_model(source: ModelConfig) -> None:
    """Refuse a model that gives no score, by its configuration alone.

    Raises:
        RequestError: the model cannot be read, is not a sequence classifier, or has several labels.
    """
    path = source.path
    config = load_model_config(source, key=KEY)
    kinds = config.architectures or ()
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise RequestError(
            f"{KEY} is {path!r}, a {' or '.join(kinds) or type(config).__name__}, which gives no "
            f"score; name a sequence classifier with one label, such as stage=reward_model writes"
        )
    if config.num_labels != 1:
        raise RequestError(
            f"{KEY} is {path!r}, a classifier with {config.num_labels} labels; a reward model has "
            f"one, its score; name another model"
        )
