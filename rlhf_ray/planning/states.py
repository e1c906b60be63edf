"""Weights, gradients and optimizer states of a rank, as DeepSpeed 0.19.8 keeps them.

The numbers are those of `zero/stage_1_and_2.py` and `zero/stage3.py` under the settings that
`training.engine.deepspeed_config` makes, and are measured by `tests/stack/planning`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf_ray.config.deepspeed.zero import TrainedZeroConfig
from rlhf_ray.config.groups.training import RoleConfig, TrainingConfig
from rlhf_ray.planning.shape import ModelShape, bytes_of

# Sub-groups of weights that ZeRO-3 steps one after the other.
_SUB_GROUP_ELEMENTS = 1_000_000_000
_MOMENTS, _MASTERS = 8, 4

Parts = dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankStates:
    """Bytes of one rank by name.

    Attributes:
        device, host: kept all the time.
        backward, step: on the device in addition, while gradients are computed, or applied.
    """

    device: Parts = field(default_factory=dict)
    host: Parts = field(default_factory=dict)
    backward: Parts = field(default_factory=dict)
    step: Parts = field(default_factory=dict)


def frozen_states(role: RoleConfig, shape: ModelShape) -> RankStates:
    """The states of a role without an optimizer."""
    own = bytes_of(role.dtype) * _weights_of_rank(role, shape)
    place = {"weights": own}
    gathered = _gathered(role, shape)
    if role.offload_parameters:
        return RankStates(host=place, device=gathered)
    return RankStates(device={**place, **gathered})


def trained_states(
    role: TrainingConfig, shape: ModelShape, *, trained: float, on_gpu: bool
) -> RankStates:
    """The states of a role with an optimizer.

    Args:
        trained: weights of the whole model that are trained, adapters included.
    """
    frozen = frozen_states(role, shape)
    if not trained:
        return frozen
    stage = effective_stage(role)
    whole = trained / role.tensor_parallel_size
    share = trained / role.num_ranks if stage else whole
    device, host = dict(frozen.device), dict(frozen.host)
    if role.lora.is_on:
        device["adapter"] = bytes_of(role.dtype) * (share if stage == 3 else whole)
    kept: Parts = {"Adam's moments": _MOMENTS * share}
    # At stage 0 the weights are float32 themselves.
    if stage:
        kept["float32 weights"] = _MASTERS * share
    (host if role.offload_optimizer and stage else device).update(kept)
    if role.ema_decay is not None:
        device["EMA"] = 4 * share
    return _with_gradients(role, RankStates(device=device, host=host), whole, share, on_gpu=on_gpu)


def effective_stage(role: TrainingConfig) -> int:
    """The ZeRO stage that DeepSpeed runs: bfloat16 with float32 gradients is at least stage 1."""
    return max(role.zero_stage, 1) if role.dtype == "bfloat16" else role.zero_stage


def _with_gradients(
    role: TrainingConfig, states: RankStates, whole: float, share: float, *, on_gpu: bool
) -> RankStates:
    """Add gradients, the buckets that they leave in, and what a step needs of them."""
    stage, width = effective_stage(role), bytes_of(_zero(role).gradient_dtype)
    device, host = dict(states.device), dict(states.host)
    backward: Parts = {}
    step: Parts = {}
    if buckets := _buckets(role, stage, whole, on_gpu=on_gpu):
        backward["buckets of gradients"] = buckets
    if stage <= 1:
        # Whole on every rank; the optimizer of stage 1 copies its share.
        device["gradients"] = width * whole
        step = {"gradients of the share": 4 * share} if stage else {}
    elif role.offload_optimizer:
        host["gradients"] = width * share + 4 * share
    else:
        device["gradients"] = width * share
        one = min(share, _SUB_GROUP_ELEMENTS) if stage == 3 else share
        step["gradients of the step"] = 4 * one
    return RankStates(device=device, host=host, backward=backward, step=step)


def _buckets(role: TrainingConfig, stage: int, whole: float, *, on_gpu: bool) -> float:
    """Buffers in which gradients are collected and reduced."""
    if not stage:
        return 0.0
    zero = _zero(role)
    size = zero.reduce_bucket_elements
    # Allocated whole on a GPU; pages of a CPU's memory are there once they are written.
    used = size if on_gpu else min(size, whole)
    sent = bytes_of(zero.communication_dtype)
    if stage == 3:
        return used * sent
    staged = bytes_of(zero.gradient_dtype) if stage == 1 else bytes_of(role.dtype)
    # Two on a GPU, where one is reduced while the other fills.
    buckets = used * staged * (2 if on_gpu else 1)
    # A copy in the format of the way, if it is another one.
    return buckets + (min(size, whole) * sent if sent != staged else 0.0)


def _zero(role: TrainingConfig) -> TrainedZeroConfig:
    return role.zero


def _weights_of_rank(role: RoleConfig, shape: ModelShape) -> float:
    holders = role.num_ranks if role.zero_stage == 3 else role.tensor_parallel_size
    return shape.weights / holders


def _gathered(role: RoleConfig, shape: ModelShape) -> Parts:
    """Weights of other ranks that ZeRO-3 keeps for a while, and its second copy in a node."""
    if role.zero_stage != 3:
        return {}
    zero, whole = role.zero, shape.weights / role.tensor_parallel_size
    width = bytes_of(role.dtype)
    # The head and the embedding are gathered in one piece each.
    most = max(zero.max_live_elements + zero.prefetch_elements, 2 * shape.embedding)
    foreign = whole * (1 - role.tensor_parallel_size / role.num_ranks)
    parts = {"gathered weights": width * min(most, foreign)}
    if zero.hpz_partition_size > 1:
        parts["second copy in the node"] = width * whole / zero.hpz_partition_size
    return {name: size for name, size in parts.items() if size}
