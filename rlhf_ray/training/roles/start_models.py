"""The models that roles start from: whole on every rank, or on rank 0 alone where ZeRO-3 shards."""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from transformers import PreTrainedModel

from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.training import RoleConfig, TrainingConfig
from rlhf_ray.models.checks.finite import check_finite
from rlhf_ray.models.loading import (
    ScalarHeadModel,
    empty_policy,
    empty_scalar_head,
    load_policy,
    load_scalar_head,
)
from rlhf_ray.models.unloaded.random_weights import new_policy, unmade_policy
from rlhf_ray.training.engine.ranks import rank
from rlhf_ray.training.engine.sharding import Fill

M = TypeVar("M", bound=nn.Module)


def trained_policy(
    model: ModelConfig, role: TrainingConfig, *, seed: int
) -> tuple[PreTrainedModel, Fill | None]:
    """The policy at the start of training, and the maker of its weights if it has none yet.

    Raises:
        RequestError: see `load_policy` and `new_policy`.
    """
    if not model.random_weights:
        return policy_of_files(model, role), None
    if not role.starts_on_first_rank:
        return new_policy(model, dtype=role.dtype, seed=seed), None
    if _gets_values(role):
        return empty_policy(model, dtype=role.dtype), None
    made, weights = unmade_policy(model, dtype=role.dtype, seed=seed)
    return made, weights.fill


def policy_of_files(model: ModelConfig, role: RoleConfig) -> PreTrainedModel:
    """A causal language model from files.

    Raises:
        RequestError: see `load_policy`; weights are not finite.
    """
    load = empty_policy if _gets_values(role) else load_policy
    return _checked(load(model, dtype=role.dtype), model, role)


def scalar_head(model: ModelConfig, role: RoleConfig) -> ScalarHeadModel:
    """A backbone with a scalar head from files.

    Raises:
        RequestError: see `load_scalar_head`; weights are not finite.
    """
    load = empty_scalar_head if _gets_values(role) else load_scalar_head
    return _checked(load(model, dtype=role.dtype), model, role)


def _checked(loaded: M, model: ModelConfig, role: RoleConfig) -> M:
    """The model, if its weights are finite; `shard_module` looks at each while it shards it."""
    if not role.starts_on_first_rank:
        check_finite(loaded, model.path)
    return loaded


def _gets_values(role: RoleConfig) -> bool:
    """Whether this rank gets its shards from rank 0; see `shard_module`."""
    return role.starts_on_first_rank and rank() > 0
