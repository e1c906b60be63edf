"""The nearest change of settings with which a run fits: few changes, without more GPUs first."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.config.groups.training import RoleConfig, TrainingConfig
from rlhf_ray.config.rules.rule import model_roles
from rlhf_ray.config.rules.table import cross_field_problems
from rlhf_ray.config.run import Config
from rlhf_ray.planning.needs import ENGINE, PhaseNeed, phase_needs, shares_gpus
from rlhf_ray.planning.shape import ModelShape

Fits = Callable[[PhaseNeed], bool]
# Values of settings by name, and what the change costs: seconds, or GPUs.
Change = tuple[float, Mapping[str, Any]]

_NO_CHANGE: Change = (0.0, {})
_SHARES = (0.85, 0.9, 0.92)
# Fewer tokens in a forward pass leave a GPU idle.
_FEWEST_TOKENS = 1024
_MOST_DOUBLINGS = 6
_RANKS_COST = 6.0
_MOST_TENSOR_RANKS = 8
# Combinations that are tried at most, the cheapest first.
_MOST_TRIED = 6000


def suggestion(config: Config, shape: ModelShape, fits: Fits) -> str:
    """Changes with which all phases fit, as a sentence; or a sentence that none was found."""
    found: dict[str, Any] = {}
    changed = config
    lost = [need.role for need in phase_needs(config, shape) if not fits(need)]
    for group in dict.fromkeys(lost):
        change = _nearest(changed, shape, fits, group)
        if change is None:
            return (
                f"plan.suggest: no change of the settings of {group} that was tried makes it fit; "
                f"take a smaller model, more GPUs or GPUs with more memory"
            )
        found |= change
        changed = changed_config(changed, change)
    if not found:
        return ""
    found = _without_needless(config, shape, fits, found)
    changed = changed_config(config, found)
    settings = " ".join(f"{key}={_shown(value)}" for key, value in found.items())
    return f"plan.suggest: it fits with {settings}{_more_gpus(config, changed)}"


def _without_needless(
    config: Config, shape: ModelShape, fits: Fits, found: Mapping[str, Any]
) -> dict[str, Any]:
    """The changes without those that a later one, for another role, has made needless."""
    needed = dict(found)
    before = set(cross_field_problems(config))
    for key in found:
        fewer = {name: value for name, value in needed.items() if name != key}
        changed = changed_config(config, fewer)
        is_valid = set(cross_field_problems(changed)) <= before
        if is_valid and all(fits(need) for need in phase_needs(changed, shape)):
            needed = fewer
    return needed


def _nearest(config: Config, shape: ModelShape, fits: Fits, group: str) -> dict[str, Any] | None:
    """The cheapest change for one role with which its phases fit, and the rules still hold."""
    before = set(cross_field_problems(config))
    for _, change in itertools.islice(_changes(config, group), _MOST_TRIED):
        changed = changed_config(config, change)
        needs = (need for need in phase_needs(changed, shape) if need.role == group)
        if all(fits(need) for need in needs) and set(cross_field_problems(changed)) <= before:
            return dict(change)
    return None


def _changes(config: Config, group: str) -> Iterator[Change]:
    """Combinations of changes for a role, the cheapest first."""
    if group == ENGINE:
        axes = _engine_axes(config)
    else:
        role = dict(model_roles(config))[group]
        longest = config.examples.max_tokens if config.is_fit else config.max_sequence_tokens
        axes = _role_axes(group, role, longest)
        if group == "training" and shares_gpus(config):
            axes = [*axes[:-1], _shared_ranks(config), _tensor_changes(config)]
    combined: list[Change] = []
    for changes in itertools.product(*axes):
        values: dict[str, Any] = {}
        for _, more in changes:
            values |= more
        combined.append((sum(cost for cost, _ in changes), values))
    return iter(sorted(combined, key=lambda change: (change[0], len(change[1]))))


def _role_axes(group: str, role: RoleConfig, longest: int) -> list[list[Change]]:
    """Alternatives of every setting of a DeepSpeed role, with their costs; ranks come last.

    A change that takes time costs less than one that takes GPUs; offloading costs the most time.
    """
    axes = [_stages(group, role), _token_changes(group, role, longest)]
    offloaded = {f"{group}.offload_parameters": True, f"{group}.zero_stage": 3}
    axes.append([_NO_CHANGE, (5.0, offloaded)])
    if isinstance(role, TrainingConfig):
        if not role.gradient_checkpointing:
            axes.append([_NO_CHANGE, (1.0, {f"{group}.gradient_checkpointing": True})])
        if not role.offload_optimizer:
            axes.append([_NO_CHANGE, (4.0, {f"{group}.offload_optimizer": True})])
    ranks = [
        (_RANKS_COST * power, {f"{group}.num_ranks": role.num_ranks * 2**power})
        for power in range(1, _MOST_DOUBLINGS + 1)
    ]
    return [*axes, [_NO_CHANGE, *ranks]]


def _stages(group: str, role: RoleConfig) -> list[Change]:
    stages = [stage for stage in (1, 2, 3) if stage > role.zero_stage]
    if not isinstance(role, TrainingConfig):
        stages = [stage for stage in stages if stage == 3]
    return [
        _NO_CHANGE,
        *((0.5 + 0.5 * stage, {f"{group}.zero_stage": stage}) for stage in stages),
    ]


def _token_changes(group: str, role: RoleConfig, longest: int) -> list[Change]:
    """Smaller micro-batches that hold the longest sample, or a share of it on several ranks."""
    changes: list[Change] = [_NO_CHANGE]
    tokens, cost = role.max_tokens_per_micro_batch, 0.0
    while tokens // 2 >= _FEWEST_TOKENS:
        tokens, cost = tokens // 2, cost + 0.7
        change = {f"{group}.max_tokens_per_micro_batch": tokens}
        wanted = role.sequence_parallel_size
        while tokens * wanted < longest:
            wanted *= 2
        if wanted == role.sequence_parallel_size:
            changes.append((cost, change))
        elif role.num_ranks % wanted == 0 and role.tensor_parallel_size == 1:
            split = {f"{group}.sequence_parallel_size": wanted}
            changes.append((cost + 1.5, {**change, **split}))
    return changes


def _shared_ranks(config: Config) -> list[Change]:
    """More ranks, with more engines on their GPUs."""
    ranks, engines = config.training.num_ranks, config.generation.num_engines
    factors = [(power, 2**power) for power in range(1, _MOST_DOUBLINGS + 1)]
    more = [
        (
            _RANKS_COST * power,
            {"training.num_ranks": ranks * factor, "generation.num_engines": engines * factor},
        )
        for power, factor in factors
    ]
    return [_NO_CHANGE, *more]


def _engine_axes(config: Config) -> list[list[Change]]:
    """Alternatives of an engine's settings: its share of a GPU, its ranks, its step."""
    generation = config.generation
    shares = [
        (0.5, {f"{ENGINE}.gpu_memory_utilization": share})
        for share in _SHARES
        if share > generation.gpu_memory_utilization
    ]
    tokens = [
        (0.6 * power, {f"{ENGINE}.max_num_batched_tokens": fewer})
        for power in (1, 2, 3)
        if (fewer := generation.max_num_batched_tokens // 2**power) >= _FEWEST_TOKENS
    ]
    return [[_NO_CHANGE, *shares], _tensor_changes(config), [_NO_CHANGE, *tokens]]


def _tensor_changes(config: Config) -> list[Change]:
    """More ranks in an engine: of the same GPUs with fewer engines, if there are enough."""
    generation = config.generation
    gpus = generation.num_engines * generation.tensor_parallel_size
    changes: list[Change] = [_NO_CHANGE]
    for power in (1, 2, 3):
        width = generation.tensor_parallel_size * 2**power
        values = {f"{ENGINE}.tensor_parallel_size": width}
        if width > _MOST_TENSOR_RANKS:
            break
        if gpus % width == 0:
            fewer = {f"{ENGINE}.num_engines": gpus // width}
            changes.append((float(power), {**values, **fewer}))
        else:
            one = {f"{ENGINE}.num_engines": 1}
            changes.append((_RANKS_COST * power, {**values, **one}))
    return changes


def changed_config(config: Config, change: Mapping[str, Any]) -> Config:
    """The configuration with other settings of its roles, by their keys."""
    for key, value in change.items():
        group, _, name = key.rpartition(".")
        if group == "reward.model":
            model = dataclasses.replace(config.reward.model, **{name: value})
            reward = dataclasses.replace(config.reward, model=model)
            config = dataclasses.replace(config, reward=reward)
        else:
            role: RoleConfig | GenerationConfig = vars(config)[group]
            own = dataclasses.replace(role, **{name: value})
            config = dataclasses.replace(config, **{group: own})
    return config


def _more_gpus(before: Config, after: Config) -> str:
    more = num_gpus(after) - num_gpus(before)
    return f", which takes {more:g} GPUs more" if more > 0 else ""


def num_gpus(config: Config) -> float:
    """GPUs of a run, without those of a judge."""
    generation = config.generation
    total = sum(role.num_ranks * role.num_gpus for _, role in model_roles(config))
    if config.is_fit or shares_gpus(config):
        return total
    return total + generation.num_engines * generation.num_workers * generation.num_gpus


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"
