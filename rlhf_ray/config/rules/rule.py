"""A rule that spans several keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rlhf_ray.config.groups.training import RoleConfig, TrainingConfig
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import RL_STAGES

# The keys that say which roles a run starts.
ROLE_KEYS = ("algorithm.advantage", "algorithm.kl_coefficient", "reward.model.path")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What must hold between keys.

    Attributes:
        about: the rule in one sentence, for the reference.
        keys: what it reads; a prefix stands for everything below it. The rule is not asked
            when one of them is already known to be wrong.
        problems: the sentences for what is broken: values first, the way out last.
        stages: names of the stages that it holds for.
    """

    about: str
    keys: tuple[str, ...]
    problems: Callable[[Config], Iterator[str]]
    stages: tuple[str, ...] = RL_STAGES


def trained_roles(config: Config) -> list[tuple[str, TrainingConfig]]:
    """The roles with an optimizer that a run starts, by the group that configures them."""
    if config.is_evaluation:
        return []
    roles = [("training", config.training)]
    has_critic = config.needs_critic and not config.is_fit
    return [*roles, ("critic", config.critic)] if has_critic else roles


def model_roles(config: Config) -> list[tuple[str, RoleConfig]]:
    """The DeepSpeed roles that a run starts, by the group that configures them."""
    roles: list[tuple[str, RoleConfig]] = list(trained_roles(config))
    if config.starts_reference and not config.is_fit:
        roles.append(("reference", config.reference))
    if config.needs_reward_model:
        roles.append(("reward.model", config.reward.model))
    return roles
