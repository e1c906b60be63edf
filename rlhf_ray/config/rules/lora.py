"""Rules of the weights of a run: adapters, frozen weights, and the way from learner to engine."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.config.rules.rule import Rule, trained_roles
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import TRAINING_STAGES

# The largest rank that vLLM supports.
_LARGEST_RANK = 512


def _adapters(config: Config) -> Iterator[str]:
    for group, role in trained_roles(config):
        if not role.lora.is_on:
            continue
        if not role.lora.target_modules:
            yield (
                f"{group}.lora.target_modules=[]: no layer would get an adapter; list "
                f"suffixes of layer names, as in [q_proj,v_proj], or use [all-linear]"
            )
        if role.freeze or role.freeze_layers:
            yield (
                f"{group}.lora.r={role.lora.r}: everything but the adapter is frozen, so "
                f"{group}.freeze={role.freeze} and {group}.freeze_layers={role.freeze_layers} "
                f"have no effect; set them to [] and 0, or {group}.lora.r to 0"
            )


def _averaged_adapter(config: Config) -> Iterator[str]:
    training = config.training
    if training.lora.is_on and training.ema_decay is not None:
        yield (
            f"training.ema_decay={training.ema_decay:g}: with training.lora.r={training.lora.r} "
            f"two factors are trained, and the product of their averages is not the average of "
            f"their product; set training.ema_decay to null, or training.lora.r to 0"
        )


def _random_weights(config: Config) -> Iterator[str]:
    training = config.training
    if not config.model.random_weights or training.trains_all:
        return
    key, off = ("lora.r", "0") if training.lora.is_on else ("freeze", "[]")
    if training.freeze_layers:
        key, off = "freeze_layers", "0"
    yield (
        f"model.random_weights=true: training.{key} would leave random weights untrained; set "
        f"training.{key} to {off}, or model.random_weights to false"
    )


def _published_adapter(config: Config) -> Iterator[str]:
    if config.publish.lora != "adapter":
        return
    r = config.training.lora.r
    if r == 0:
        yield (
            "publish.lora=adapter: training.lora.r=0 trains no adapter to publish; "
            "set training.lora.r, for instance to 16, or publish.lora to merged"
        )
    elif r > _LARGEST_RANK:
        yield (
            f"publish.lora=adapter: vLLM supports adapters up to a rank of {_LARGEST_RANK}, but "
            f"training.lora.r={r}; lower r, or set publish.lora to merged"
        )


def _moving_reference(config: Config) -> Iterator[str]:
    every = config.algorithm.reference_every
    if every > 0 and config.reference_is_policy:
        yield (
            f"algorithm.reference_every={every}: the reference is the policy without its adapter "
            f"(training.lora.r={config.training.lora.r}), whose weights never change; set "
            f"reference.source to own, or algorithm.reference_every to 0"
        )


def _shared_gpus(config: Config) -> Iterator[str]:
    is_shared = config.placement.strategy == "colocated" and config.training.num_gpus > 0
    if is_shared and not config.training.trains_all:
        yield (
            "placement=colocated: DeepSpeed can only offload trained weights, but "
            f"training.lora.r={config.training.lora.r}, training.freeze={config.training.freeze} "
            f"and training.freeze_layers={config.training.freeze_layers} freeze others; use "
            f"placement=disaggregated, or train all weights"
        )


def _publish_to_other_nodes(config: Config) -> Iterator[str]:
    if not config.generation.spans_nodes:
        return
    is_whole = config.training.num_gpus == 1 and not config.publishes_adapter
    if config.publish.transport not in ("auto", "collective") or not is_whole:
        yield (
            f"generation.pipeline_parallel_size={config.generation.pipeline_parallel_size}: only a "
            f"broadcast reaches workers on other nodes, but publish.transport="
            f"{config.publish.transport}, publish.lora={config.publish.lora} and "
            f"training.num_gpus={config.training.num_gpus:g}; set them to collective, merged and 1"
        )


def _kept_cache(config: Config) -> Iterator[str]:
    if config.publish.keep_cache and config.max_staleness == 0:
        yield (
            "publish.keep_cache=true: with max_staleness=0 no request runs during a publish; set "
            "keep_cache to false, or max_staleness above 0"
        )


_PARTS = ("lora.r", "lora.target_modules", "freeze", "freeze_layers")
_OWN = tuple(f"training.{part}" for part in _PARTS)


def _transport(config: Config) -> Iterator[str]:
    name = config.publish.transport
    if name not in ("collective", "ipc"):
        return
    engine, learner = config.generation.num_gpus, config.training.num_gpus
    is_colocated = config.placement.strategy == "colocated"
    key = f"publish.transport={name}"
    if config.publishes_adapter:
        yield (
            f"{key}: with publish.lora=adapter only the adapter is sent, which goes through the "
            f"object store; set publish.transport to auto or object_store"
        )
    if (engine > 0) != (learner > 0):
        yield (
            f"{key}: generation.num_gpus={engine:g} and training.num_gpus={learner:g}; learner and "
            f"engines must both be on GPUs or both on CPUs; set publish.transport to auto or "
            f"object_store"
        )
    elif engine > 0 and name == "ipc" and not is_colocated:
        yield (
            f"{key}: with placement={config.placement.strategy} no engine worker is on the GPU of "
            f"a learner rank; set publish.transport to auto or collective"
        )
    elif engine > 0 and name == "collective" and (is_colocated or min(engine, learner) < 1):
        yield (
            f"{key}: NCCL refuses two members on one GPU, but learner and engines may share GPUs "
            f"(placement={config.placement.strategy}, generation.num_gpus={engine:g}, "
            f"training.num_gpus={learner:g}); set publish.transport to auto or "
            f"{'ipc' if is_colocated else 'object_store'}"
        )


LORA_RULES: tuple[Rule, ...] = (
    Rule(
        about="`lora.r` above 0 needs `lora.target_modules`, and excludes `freeze` and "
        "`freeze_layers`, because everything but the adapter is frozen.",
        keys=(*_OWN, *(f"critic.{part}" for part in _PARTS), "algorithm.advantage"),
        problems=_adapters,
        stages=TRAINING_STAGES,
    ),
    Rule(
        about="`training.ema_decay` is null with `training.lora.r` above 0.",
        keys=("training.ema_decay", "training.lora.r"),
        problems=_averaged_adapter,
        stages=TRAINING_STAGES,
    ),
    Rule(
        about="`model.random_weights` needs all weights trained: no `training.lora.r`, "
        "`training.freeze` or `training.freeze_layers`.",
        keys=("model.random_weights", *_OWN),
        problems=_random_weights,
        stages=("pretrain",),
    ),
    Rule(
        about="`publish.lora=adapter` needs `training.lora.r` from 1 to 512.",
        keys=("publish.lora", "training.lora.r"),
        problems=_published_adapter,
    ),
    Rule(
        about="`publish.transport` of `collective` or `ipc` needs whole weights (not "
        "`publish.lora=adapter`), and learner and engines both on CPUs or both on GPUs: for "
        "`collective` on different whole GPUs, for `ipc` on the same (`placement=colocated`).",
        keys=(
            "publish.transport",
            "publish.lora",
            "placement.strategy",
            "generation.num_gpus",
            "training.num_gpus",
        ),
        problems=_transport,
    ),
    Rule(
        about="`algorithm.reference_every` above 0 needs a separate reference: with "
        "`training.lora.r` above 0, `reference.source=own` or a `reference.path`.",
        keys=(
            "algorithm.reference_every",
            "algorithm.kl_coefficient",
            "training.lora.r",
            "reference.source",
            "reference.path",
        ),
        problems=_moving_reference,
    ),
    Rule(
        about="`placement=colocated` on GPUs needs all weights trained.",
        keys=("placement.strategy", "training.num_gpus", *_OWN),
        problems=_shared_gpus,
    ),
    Rule(
        about="`generation.pipeline_parallel_size` above 1 needs `publish.transport` auto or "
        "collective, `publish.lora` merged and `training.num_gpus` 1.",
        keys=(
            "generation.pipeline_parallel_size",
            "publish.transport",
            "publish.lora",
            "training.num_gpus",
        ),
        problems=_publish_to_other_nodes,
    ),
    Rule(
        about="`publish.keep_cache` needs `max_staleness` above 0.",
        keys=("publish.keep_cache", "max_staleness"),
        problems=_kept_cache,
    ),
)
