"""Rules of tensor slicing (`tensor_parallel_size`)."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.config.rules.rule import ROLE_KEYS, SPLIT_KEYS, Rule, model_roles, trained_roles
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import DEEPSPEED_STAGES


def _groups(config: Config) -> Iterator[str]:
    for group, role in model_roles(config):
        size = role.tensor_parallel_size
        if size == 1:
            continue
        name = f"{group}.tensor_parallel_size={size}"
        if role.sequence_parallel_size > 1:
            yield (
                f"{name}: {group}.sequence_parallel_size={role.sequence_parallel_size} divides the "
                f"same group of ranks in another way; set one of them to 1"
            )
        elif role.num_ranks % size:
            yield (
                f"{name}: groups of {size} ranks, and {group}.num_ranks={role.num_ranks} is no "
                f"multiple of it; use {size * -(-role.num_ranks // size)} ranks, or another size"
            )
        if role.zero.hpz_partition_size > 1:
            yield (
                f"{name}: {group}.zero.hpz_partition_size={role.zero.hpz_partition_size} keeps a "
                f"second copy of whole weights on every node, and no rank of a group has them; "
                f"set hpz_partition_size to 1"
            )


def _adapters(config: Config) -> Iterator[str]:
    for group, role in trained_roles(config):
        if role.tensor_parallel_size > 1 and role.lora.is_on:
            yield (
                f"{group}.tensor_parallel_size={role.tensor_parallel_size}: {group}.lora adds "
                f"factors to whole matrices, of which every rank has a slice; use "
                f"sequence_parallel_size or zero_stage 3 with an adapter"
            )


_RANKS = ("training", "critic", "reference", "reward.model")

TENSOR_RULES: tuple[Rule, ...] = (
    Rule(
        about="`tensor_parallel_size` above 1 divides `num_ranks`, and goes neither with "
        "`sequence_parallel_size` nor with `zero.hpz_partition_size`.",
        keys=(
            *SPLIT_KEYS,
            *(f"{group}.{name}" for group in _RANKS for name in ("num_ranks", "zero")),
            *ROLE_KEYS,
        ),
        problems=_groups,
        stages=DEEPSPEED_STAGES,
    ),
    Rule(
        about="`tensor_parallel_size` above 1 goes with no adapter (`lora`).",
        keys=(*SPLIT_KEYS, "training.lora", "critic.lora", *ROLE_KEYS),
        problems=_adapters,
        stages=DEEPSPEED_STAGES,
    ),
)
