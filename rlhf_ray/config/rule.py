"""A rule that spans several keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rlhf_ray.config.run import Config
from rlhf_ray.config.training import RoleConfig, TrainingConfig

# The stages that train a policy, or plan to.
RL_STAGES = ("rl", "plan")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What must hold between keys.

    Attributes:
        about: the rule in one sentence, for the reference.
        keys: what it reads; a prefix stands for everything below it. The rule is not asked
            when one of them is already known to be wrong.
        stages: those that it holds for; no other is held to it.
        problems: the sentences for what is broken: values first, the way out last.
    """

    about: str
    keys: tuple[str, ...]
    problems: Callable[[Config], Iterator[str]]
    stages: tuple[str, ...] = RL_STAGES


def trained_roles(config: Config) -> list[tuple[str, TrainingConfig]]:
    """The roles with an optimizer that a run starts, by the group that configures them."""
    roles = [("training", config.training)]
    return [*roles, ("critic", config.critic)] if config.needs_critic else roles


def model_roles(config: Config) -> list[tuple[str, RoleConfig]]:
    """The DeepSpeed roles that a run starts, by the group that configures them."""
    roles: list[tuple[str, RoleConfig]] = list(trained_roles(config))
    return [*roles, ("reference", config.reference)] if config.needs_reference else roles
