"""Rules between keys, and the roles that they ask about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from rlhf_ray.config.groups.training import RoleConfig, TrainingConfig
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import RL_STAGES

# Keys that decide which roles a run starts.
ROLE_KEYS = ("algorithm.advantage", "algorithm.kl_coefficient", "reward.model.path")
# Keys that divide samples over ranks.
SPLIT_KEYS = (
    "training.sequence_parallel_size",
    "critic.sequence_parallel_size",
    "reference.sequence_parallel_size",
    "reward.model.sequence_parallel_size",
    "training.tensor_parallel_size",
    "critic.tensor_parallel_size",
    "reference.tensor_parallel_size",
    "reward.model.tensor_parallel_size",
)


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


def address_problems(key: str, url: str, *, token_key: str) -> Iterator[str]:
    """Check the address of a service, to which paths are appended; yields every problem.

    Args:
        key: configuration key of the address, for the message.
        token_key: configuration key for a token, which does not belong in the address.
    """
    parts = _split(url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        yield (
            f"{key}={url}: is not the address of a service; write http://HOST:PORT or "
            f"https://HOST/PATH"
        )
    elif parts.username is not None or parts.password is not None:
        # The address is not shown: a password would go to the log, as it would to config.yaml.
        yield (
            f"{key}: has a user or a password, which would be written to config.yaml; put a "
            f"token into an environment variable and name the variable in {token_key}"
        )
    elif parts.query or parts.fragment:
        yield (
            f"{key}={url}: has a query or a fragment, but paths are appended to it; remove query "
            f"and fragment"
        )


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts
