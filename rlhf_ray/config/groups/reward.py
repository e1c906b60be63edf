"""Which functions score a response and how failures are treated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.config.http_reward import HttpRewardConfig
from rlhf_ray.config.judge import JudgeConfig
from rlhf_ray.config.model_reward import ModelRewardConfig
from rlhf_ray.config.setting import setting


@dataclass
class RewardFunctionConfig:
    """One entry of `reward.functions` after it was read; a bare string is a path."""

    path: str
    name: str
    weight: float
    arguments: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorerPart:
    """A part of the reward that is no function's: its keys' group, its name and weight."""

    group: str
    name: str
    weight: float


@dataclass
class RewardConfig:
    """Reward functions, their workers and the tolerance for failures."""

    functions: list[Any] = setting(
        [],
        "Entries are a name of a built-in (exact_match, regular_expression, arithmetic, length, "
        "lines), package.module:function, path/file.py:function, or a mapping with path, name, "
        "weight and arguments. May be empty where something else scores, such as reward.model.",
    )
    num_workers: int = setting(1, "Reward worker processes.", minimum=1)
    num_cpus: float = setting(0.1, "Ray CPUs per reward worker.", unit="CPUs", minimum=0)
    timeout_s: float = setting(
        10.0, "Time limit for one function on one sample.", unit="seconds", above=0
    )
    on_failure: str = setting(
        "drop",
        "A group with a failed sample is dropped and replaced by another prompt, or "
        "its failed part is tried once more before that.",
        choices=("drop", "retry"),
    )
    max_failure_rate: float = setting(
        0.1,
        "The run stops with the first error when more than this share of the groups of "
        "the last 100 or more failed.",
        minimum=0,
        maximum=1,
    )
    url: str | None = setting(
        None,
        "Address of a service that scores responses, such as stage=serve_reward starts: it "
        "answers at URL/score and URL/health; null for none.",
    )
    model: ModelRewardConfig = field(default_factory=ModelRewardConfig)
    http: HttpRewardConfig = field(default_factory=HttpRewardConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    @property
    def scorers(self) -> tuple[ScorerPart, ...]:
        """What scores a group after the functions, in this order."""
        switches = (
            (self.model.path, "reward.model", self.model),
            (self.url, "reward.http", self.http),
            (self.judge.model, "reward.judge", self.judge),
        )
        return tuple(
            ScorerPart(group=group, name=part.name, weight=part.weight)
            for switch, group, part in switches
            if switch is not None
        )
