"""Rules between keys, and the roles that they ask about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rlhf_ray.config.groups.training import RoleConfig, TrainingConfig
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import RL_STAGES

# Keys that decide which roles a run starts.
ROLE_KEYS = ("algorithm.advantage", "algorithm.kl_coefficient", "reward.model.path")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A condition between keys.

    Attributes:
        about: the rule in one sentence, for the reference.
        keys: keys that the rule reads; a prefix stands for all keys below. A rule with a key
            whose value was refused is skipped.
        problems: yields a sentence for every violation: key and value, reason, fix.
        stages: names of the stages that the rule holds for; `plan` shows a run of `rl`.
    """

    about: str
    keys: tuple[str, ...]
    problems: Callable[[Config], Iterator[str]]
    stages: tuple[str, ...] = RL_STAGES


def trained_roles(config: Config) -> list[tuple[str, TrainingConfig]]:
    """Roles with an optimizer that a run starts, with their configuration groups."""
    if config.is_evaluation:
        return []
    roles = [("training", config.training)]
    has_critic = config.needs_critic and not config.is_fit
    return [*roles, ("critic", config.critic)] if has_critic else roles


def model_roles(config: Config) -> list[tuple[str, RoleConfig]]:
    """DeepSpeed roles that a run starts, with their configuration groups."""
    roles: list[tuple[str, RoleConfig]] = list(trained_roles(config))
    if config.starts_reference and not config.is_fit:
        roles.append(("reference", config.reference))
    if config.needs_reward_model:
        roles.append(("reward.model", config.reward.model))
    return roles
