"""Rules of the DeepSpeed roles: sharding, kernels, GPUs, colocation."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.config.deepspeed.extra import extra_problems
from rlhf_ray.config.deepspeed.zero import zero_problems
from rlhf_ray.config.rules.rule import ROLE_KEYS, Rule, model_roles, trained_roles
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import DEEPSPEED_STAGES, SCORING_STAGES


def _offload(config: Config) -> Iterator[str]:
    for group, role in model_roles(config):
        if role.offload_parameters and role.zero_stage != 3:
            yield (
                f"{group}.offload_parameters=true: only {group}.zero_stage=3 has parameters to "
                f"offload, not {role.zero_stage}; set zero_stage to 3, or offload_parameters to "
                f"false"
            )
    for group, role in trained_roles(config):
        if role.offload_optimizer and role.zero_stage == 0:
            yield (
                f"{group}.offload_optimizer=true: {group}.zero_stage=0 has no optimizer states to "
                f"offload; set zero_stage to 1, 2 or 3, or offload_optimizer to false"
            )


def _zero(config: Config) -> Iterator[str]:
    for group, role in model_roles(config):
        yield from zero_problems(
            group,
            role.zero,
            stage=role.zero_stage,
            num_ranks=role.num_ranks,
            dtype=role.dtype,
            offloads=role.offload_parameters,
        )


def _extra_deepspeed_config(config: Config) -> Iterator[str]:
    for group, role in model_roles(config):
        yield from extra_problems(group, role.extra_deepspeed_config)


def _averaged_critic(config: Config) -> Iterator[str]:
    decay = config.critic.ema_decay
    if config.needs_critic and decay is not None:
        yield (
            f"critic.ema_decay={decay:g}: only the policy is averaged; set it to null, and "
            f"training.ema_decay for the policy"
        )


def _reference_stage(config: Config) -> Iterator[str]:
    stage = config.reference.zero_stage
    if config.starts_reference and stage in (1, 2):
        yield (
            f"reference.zero_stage={stage}: a frozen model has neither optimizer states nor "
            f"gradients to shard; use 0, or 3 to shard its parameters"
        )


def _gpu_per_rank(config: Config) -> Iterator[str]:
    for group, role in model_roles(config):
        if group == "reward.model" and role.zero_stage == 0:
            continue  # Its ranks do not communicate.
        if 0 < role.num_gpus < 1 and role.num_ranks > 1:
            yield (
                f"{group}.num_gpus={role.num_gpus}: NCCL does not allow the {group}.num_ranks="
                f"{role.num_ranks} ranks to share a GPU; set it to 1, or num_ranks to 1"
            )


def _flash_attention(config: Config) -> Iterator[str]:
    if config.model.attention != "flash_attention_2":
        return
    for group, role in model_roles(config):
        if role.num_gpus == 0 or role.dtype == "float32":
            yield (
                f"model.attention=flash_attention_2: needs a GPU and bfloat16, but "
                f"{group}.num_gpus={role.num_gpus} and {group}.dtype={role.dtype}; use "
                f"model.attention=sdpa, or change those"
            )


def _head_kernel(config: Config) -> Iterator[str]:
    if config.model.head_kernel != "liger":
        return
    for group, role in model_roles(config):
        has_words = group not in ("critic", "reward.model")
        if has_words and role.num_gpus == 0:
            yield (
                f"model.head_kernel=liger: needs a GPU, but {group}.num_gpus={role.num_gpus}; use "
                f"model.head_kernel=chunked, or set num_gpus to 1"
            )
    if config.generation.top_k and not config.is_fit:
        yield (
            f"model.head_kernel=liger: normalises over the whole vocabulary, but "
            f"generation.top_k={config.generation.top_k} restricts it; use "
            f"model.head_kernel=chunked, or set generation.top_k to 0"
        )


def _packed_rows(config: Config) -> Iterator[str]:
    attention = config.model.attention
    is_flash = attention == "flash_attention_2"
    for group, role in model_roles(config):
        if role.layout == "packed" and is_flash:
            yield (
                f"{group}.layout=packed: model.attention=flash_attention_2 does not support the "
                f"attention mask of packed rows; use {group}.layout=varlen, or "
                f"model.attention=sdpa"
            )
        if role.layout == "varlen" and not is_flash:
            yield (
                f"{group}.layout=varlen: model.attention={attention} does not take the lengths of "
                f"the samples of a row; use {group}.layout=packed, or "
                f"model.attention=flash_attention_2"
            )


def _colocated(config: Config) -> Iterator[str]:
    if config.placement.strategy != "colocated":
        return
    if config.max_staleness > 0:
        yield (
            f"max_staleness={config.max_staleness}: with placement=colocated engine and learner "
            f"take turns and do not overlap; set it to 0, or use placement=disaggregated"
        )
    if config.training.offload_parameters:
        yield (
            "training.offload_parameters=true: with placement=colocated the learner's weights "
            "leave the GPU while engines generate, which DeepSpeed refuses for parameters that it "
            "offloads itself; set it to false"
        )
    generation, training = config.generation, config.training
    if generation.num_gpus != training.num_gpus:
        yield (
            f"generation.num_gpus={generation.num_gpus}: with placement=colocated an engine rank "
            f"shares the GPU of a learner rank, which has training.num_gpus={training.num_gpus}; "
            f"set both to 1, or both to 0"
        )
    elif 0 < generation.num_gpus < 1:
        yield (
            f"generation.num_gpus={generation.num_gpus}: with placement=colocated learner ranks "
            f"hold whole GPUs; set generation.num_gpus and training.num_gpus to 1"
        )
    elif generation.num_gpus == 1:
        yield from _colocated_on_gpus(config)


def _colocated_on_gpus(config: Config) -> Iterator[str]:
    engines, width = config.generation.num_engines, config.generation.tensor_parallel_size
    if engines * width != config.training.num_ranks:
        yield (
            f"training.num_ranks={config.training.num_ranks}: with placement=colocated every GPU "
            f"has one engine rank and one learner rank; set it to {engines * width} "
            f"(generation.num_engines={engines} x generation.tensor_parallel_size={width}), or "
            f"change those"
        )
    if config.training.zero_stage < 2:
        yield (
            f"training.zero_stage={config.training.zero_stage}: with placement=colocated the "
            f"learner frees its GPU while engines generate, which DeepSpeed supports at stage 2 or "
            f"3; use one of them"
        )


def _roles(*names: str) -> tuple[str, ...]:
    groups = ("training", "critic", "reference", "reward.model")
    own = tuple(f"{group}.{name}" for group in groups for name in names)
    return (*own, *ROLE_KEYS)


TRAINING_RULES: tuple[Rule, ...] = (
    Rule(
        about="`offload_parameters` needs `zero_stage` 3, `offload_optimizer` 1, 2 or 3.",
        keys=(
            *_roles("offload_parameters", "zero_stage"),
            "training.offload_optimizer",
            "critic.offload_optimizer",
        ),
        problems=_offload,
        stages=DEEPSPEED_STAGES,
    ),
    Rule(
        about="Keys of `zero` have an effect at the role's `zero_stage`; `zero.hpz_partition_size` "
        "divides `num_ranks`, and is 1 with `offload_parameters`; `zero.gradient_dtype=bfloat16` "
        "needs `dtype=bfloat16` and `zero_stage` 2 or 3.",
        keys=_roles("zero", "zero_stage", "num_ranks", "dtype", "offload_parameters"),
        problems=_zero,
        stages=DEEPSPEED_STAGES,
    ),
    Rule(
        about="`extra_deepspeed_config` has keys that DeepSpeed knows and no other key sets.",
        keys=_roles("extra_deepspeed_config"),
        problems=_extra_deepspeed_config,
        stages=DEEPSPEED_STAGES,
    ),
    Rule(
        about="`critic.ema_decay` is null: only the policy is averaged.",
        keys=("critic.ema_decay", "algorithm.advantage"),
        problems=_averaged_critic,
    ),
    Rule(
        about="`reference.zero_stage` is 0 or 3, because a frozen model has only parameters "
        "to shard.",
        keys=("reference.zero_stage", "algorithm.kl_coefficient"),
        problems=_reference_stage,
        stages=SCORING_STAGES,
    ),
    Rule(
        about="A fraction of a GPU per rank needs `num_ranks` 1, except for a reward model with "
        "`zero_stage` 0.",
        keys=(*_roles("num_gpus", "num_ranks"), "reward.model.zero_stage"),
        problems=_gpu_per_rank,
        stages=DEEPSPEED_STAGES,
    ),
    Rule(
        about="`model.attention=flash_attention_2` needs every role on GPUs, in bfloat16.",
        keys=("model.attention", *_roles("num_gpus", "dtype")),
        problems=_flash_attention,
        stages=DEEPSPEED_STAGES,
    ),
    Rule(
        about="`model.head_kernel=liger` needs learner and reference on GPUs, and "
        "`generation.top_k` 0.",
        keys=("model.head_kernel", "generation.top_k", *_roles("num_gpus")),
        problems=_head_kernel,
        stages=DEEPSPEED_STAGES,
    ),
    Rule(
        about="`layout=packed` needs `model.attention` sdpa or eager, `layout=varlen` "
        "flash_attention_2.",
        keys=("model.attention", *_roles("layout")),
        problems=_packed_rows,
        stages=DEEPSPEED_STAGES,
    ),
    Rule(
        about="`placement=colocated` needs `max_staleness` 0, no `training.offload_parameters` and "
        "the same `num_gpus` for engine and learner; on GPUs also "
        "`generation.num_engines` x `generation.tensor_parallel_size` = `training.num_ranks` and "
        "`training.zero_stage` 2 or 3.",
        keys=(
            "placement.strategy",
            "max_staleness",
            "generation.num_engines",
            "generation.tensor_parallel_size",
            "generation.num_gpus",
            "training.num_gpus",
            "training.num_ranks",
            "training.zero_stage",
            "training.offload_parameters",
        ),
        problems=_colocated,
    ),
)
