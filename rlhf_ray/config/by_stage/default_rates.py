"""Default learning rates: one table, for `training.learning_rate` and `critic.learning_rate`."""

from __future__ import annotations

from rlhf_ray.config.groups.training import RL_LEARNING_RATE, CriticConfig, TrainingConfig
from rlhf_ray.config.run import Config

# Peak rates for a whole model; docs/training_stages.md, "Learning rate", has the sources.
STAGE_RATES: dict[str, float] = {
    "rl": RL_LEARNING_RATE,
    "pretrain": 5e-5,
    "sft": 2e-5,
    "reward_model": 1e-5,
    "preference": 1e-6,
}
RANDOM_WEIGHTS_RATE = 3e-4
CRITIC_RATE = 1e-5
# Schulman et al. 2025, "LoRA Without Regret"; also in TRL's guide of this name.
LORA_FACTOR = 10


def default_rates(config: Config) -> dict[str, float]:
    """The default of every learning rate, by key, for the stage and the adapters of `config`.

    Stages that train nothing have those of reinforcement learning.
    """
    rate = STAGE_RATES.get(config.stage.name, STAGE_RATES["rl"])
    if config.stage.name == "pretrain" and config.model.random_weights:
        rate = RANDOM_WEIGHTS_RATE
    return {
        "training.learning_rate": _of_adapter(rate, config.training),
        "critic.learning_rate": _of_adapter(CRITIC_RATE, config.critic),
    }


def set_default_rates(config: Config) -> None:
    """Put the defaults in the place of learning rates that are null."""
    rates = default_rates(config)
    if config.training.learning_rate is None:
        config.training.learning_rate = rates["training.learning_rate"]
    if config.critic.learning_rate is None:
        config.critic.learning_rate = rates["critic.learning_rate"]


def _of_adapter(rate: float, settings: TrainingConfig | CriticConfig) -> float:
    # Rounded: 2e-5 x 10 is 0.00020000000000000001 in floats.
    return float(f"{rate * LORA_FACTOR:.6g}") if settings.lora.is_on else rate
