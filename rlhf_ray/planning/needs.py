"""Memory that every role of a run needs in every phase, on its device and on the host.

Weights, states and the cache of one sample are certain: a device must have them. Buffers and
activations are estimates. Both are compared with the memory of the device, see `gpu_memory.py`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.training import RoleConfig, TrainingConfig
from rlhf_ray.config.rules.rule import trained_roles
from rlhf_ray.config.run import Config
from rlhf_ray.planning.activations import scoring_activations, training_activations
from rlhf_ray.planning.adapter_size import trained_weights
from rlhf_ray.planning.devices import GIB
from rlhf_ray.planning.engine_memory import EngineMemory, engine_memory
from rlhf_ray.planning.hub import planned_model
from rlhf_ray.planning.shape import ModelShape, bytes_of, model_shape
from rlhf_ray.planning.states import RankStates, frozen_states, trained_states

Parts = Mapping[str, float]

# CUDA's own memory of a process, the buffers of NCCL and pieces that the allocator cannot use.
_CUDA = {"CUDA and NCCL": 1.5 * GIB}
# An engine that sleeps, or a learner whose states have left.
_ASLEEP = {"CUDA": 0.8 * GIB}
# Python, torch and the libraries of one process, with CUDA's and without.
_PROCESS, _CPU_PROCESS = {"process": 3.0 * GIB}, {"process": 1.0 * GIB}
_CERTAIN = frozenset(
    (
        *("weights", "adapter", "gradients", "Adam's moments", "float32 weights", "EMA"),
        *("cache of one sample", "learner's weights", "engine's weights", "two buckets"),
        "second copy in the node",
    )
)
# The role that a need belongs to, by the group of its settings.
ENGINE = "generation"


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseNeed:
    """Bytes of one rank of a role in one phase.

    Attributes:
        role: group of its settings.
        phase: load, generate, sleep, score, update, publish or checkpoint.
        device: bytes on its GPU; empty without one.
        host: bytes of the machine's memory.
        share: of the GPU that may be used.
        cache: of an engine, which fills its share.
    """

    role: str
    phase: str
    device: Parts = field(default_factory=dict)
    host: Parts = field(default_factory=dict)
    share: float = 1.0
    cache: EngineMemory | None = None

    @property
    def total(self) -> float:
        return sum(self.device.values())

    @property
    def certain(self) -> float:
        """Bytes without which the phase cannot be."""
        return sum(size for name, size in self.device.items() if name in _CERTAIN)


def phase_needs(config: Config, shape: ModelShape) -> list[PhaseNeed]:
    """The needs of all roles that the run starts, in the order of a step.

    A role with another model, whose sizes are not known, is left out.

    Args:
        shape: of the policy.
    """
    shared = shares_gpus(config)
    needs: list[PhaseNeed] = []
    if not config.is_fit:
        needs += _engine_needs(config, shape, is_shared=shared)
    if config.starts_reference and not config.is_fit:
        own = _own_shape(config.reference.path, config.seed, shape)
        needs += _frozen_needs("reference", config.reference, own, config.head_kernel)
    if config.needs_reward_model:
        own = _own_shape(config.reward.model.path, config.seed, shape)
        needs += _frozen_needs("reward.model", config.reward.model, own, "none")
    for group, role in trained_roles(config):
        path = config.critic.path if group == "critic" else None
        needs += _trained_needs(config, group, role, _own_shape(path, config.seed, shape))
    if shared and config.training.num_gpus:
        needs += _sharing_needs(config, shape)
    return needs


@functools.lru_cache(maxsize=32)
def _own_shape(path: str | None, seed: int, policy: ModelShape) -> ModelShape | None:
    """The shape of a role's own model; that of the policy without one."""
    if path is None:
        return policy
    try:
        values = planned_model(path, seed=seed)
    except RequestError:
        return None  # The checks of models say it.
    return model_shape(values) if values is not None else None


def shares_gpus(config: Config) -> bool:
    """Whether engine and learner take turns on the same GPUs."""
    return config.placement.strategy == "colocated" and config.generation.num_gpus > 0


def _engine_needs(config: Config, shape: ModelShape, *, is_shared: bool) -> Iterator[PhaseNeed]:
    generation = config.generation
    memory = engine_memory(generation, shape)
    # One sequence of the greatest length must fit, or vLLM does not start.
    one = {"cache of one sample": memory.token * config.max_engine_tokens}
    parts = {**memory.parts, **one}
    if not generation.num_gpus:
        cache = {"cache": (generation.kv_cache_gib or 0) * GIB}
        host = {**_CPU_PROCESS, **memory.parts, **cache}
        yield PhaseNeed(role=ENGINE, phase="generate", host=host, cache=memory)
        return
    share = generation.gpu_memory_utilization
    yield PhaseNeed(
        role=ENGINE, phase="generate", device=parts, host=_PROCESS, share=share, cache=memory
    )
    if is_shared:
        # Level 2: the weights are forgotten, the host keeps no copy.
        yield PhaseNeed(role=ENGINE, phase="sleep", device=_ASLEEP, host=_PROCESS)
        return
    buckets = {"two buckets": 2.0 * config.publish.bucket_bytes}
    weights = {"weights": memory.parts["weights"]}
    yield PhaseNeed(
        role=ENGINE, phase="publish", device={**weights, **buckets, **_CUDA}, host=_PROCESS
    )


def _frozen_needs(
    group: str, role: RoleConfig, shape: ModelShape | None, head: str
) -> Iterator[PhaseNeed]:
    if shape is None:
        return
    states, on_gpu = frozen_states(role, shape), role.num_gpus > 0
    activations = scoring_activations(role, shape, head=_head(head, on_gpu), on_gpu=on_gpu)
    yield _need(group, "load", role, states, _loading(role, shape))
    yield _need(group, "score", role, states, activations)


def _trained_needs(
    config: Config, group: str, role: TrainingConfig, shape: ModelShape | None
) -> Iterator[PhaseNeed]:
    if shape is None:
        return
    on_gpu = role.num_gpus > 0
    head = (
        "none" if group == "critic" or config.stage.name == "reward_model" else config.head_kernel
    )
    head = _head(head, on_gpu)
    trained = trained_weights(role, shape)
    states = trained_states(role, shape, trained=trained, on_gpu=on_gpu)
    batch = _micro_batch(config, role)
    scoring = scoring_activations(batch, shape, head=head, on_gpu=on_gpu)
    first, last = training_activations(
        batch, shape, checkpointing=role.gradient_checkpointing, head=head, on_gpu=on_gpu
    )
    # Buckets are whole from the start on a GPU; a CPU has their pages once gradients fill them.
    moments = [{**first, **(states.backward if on_gpu else {})}, {**last, **states.backward}]
    update = max(moments, key=lambda parts: sum(parts.values()))
    yield _need(group, "load", role, states, _loading(role, shape))
    if not config.is_fit:
        yield _need(group, "score", role, states, scoring)
    yield _need(group, "update", role, states, update)
    yield _need(group, "optimizer step", role, states, states.step)
    if group == "training" and not config.is_fit and not shares_gpus(config):
        buckets = {"two buckets": 2.0 * config.publish.bucket_bytes}
        yield _need(group, "publish", role, states, buckets)
    if config.checkpoint.every_steps:
        copied = {"copy of the states": 12 * trained / role.num_ranks}
        extra = copied if config.checkpoint.background else {}
        yield _need(group, "checkpoint", role, states, {}, host=extra)


def _micro_batch(config: Config, role: RoleConfig) -> RoleConfig:
    """The role with no larger micro-batches than the samples of a step on a rank can fill."""
    if config.is_fit:
        return role
    ranks = role.num_ranks // role.tensor_parallel_size
    most = -(-config.samples_per_step // ranks) * config.max_sequence_tokens
    return replace(role, max_tokens_per_micro_batch=min(role.max_tokens_per_micro_batch, most))


def _sharing_needs(config: Config, shape: ModelShape) -> Iterator[PhaseNeed]:
    """The turns of the hybrid engine; see "Turns of the hybrid engine" in docs/architecture.md."""
    training = config.training
    trained = trained_weights(training, shape)
    states = trained_states(training, shape, trained=trained, on_gpu=True)
    engine = engine_memory(config.generation, shape).parts["weights"]
    # An EMA is published next to the float32 weights.
    averaged = ("EMA", "float32 weights") if training.ema_decay is not None else ()
    kept = {name: states.device[name] for name in averaged if name in states.device}
    yield PhaseNeed(
        role="training",
        phase="publish",
        device={
            "learner's weights": states.device.get("weights", 0.0),
            **kept,
            "engine's weights": engine,
            "two buckets": 2.0 * config.publish.bucket_bytes,
            **_CUDA,
            **_ASLEEP,
        },
        host={**_PROCESS, **states.host},
    )
    # Pinned host memory; buffers are made again.
    left = {n: s for n, s in states.device.items() if n != "gathered weights"}
    yield PhaseNeed(
        role="training", phase="sleep", device=_ASLEEP, host={**_PROCESS, **states.host, **left}
    )


def _need(
    group: str,
    phase: str,
    role: RoleConfig,
    states: RankStates,
    more: Parts,
    *,
    host: Parts | None = None,
) -> PhaseNeed:
    """A need with the states of a rank, which are host memory where it has no GPU."""
    if not role.num_gpus:
        own = _added(_CPU_PROCESS, states.host, states.device, more, host or {})
        return PhaseNeed(role=group, phase=phase, host=own)
    host = {**_PROCESS, **states.host, **(host or {})}
    device = {**states.device, **more, **_CUDA}
    return PhaseNeed(role=group, phase=phase, device=device, host=host)


def _added(*parts: Parts) -> Parts:
    """All parts; those of one name, on the device and offloaded, are added."""
    total: Counter[str] = Counter()
    for each in parts:
        total.update(each)
    return total


def _loading(role: RoleConfig, shape: ModelShape) -> Parts:
    """Host memory is mapped files; on the device one whole tensor next to the shards at stage 3."""
    if not role.starts_on_first_rank:
        return {}
    return {"a whole tensor": bytes_of(role.dtype) * float(shape.embedding)}


def _head(kernel: str, on_gpu: bool) -> str:
    """The kernel that auto is likely to take."""
    if kernel == "auto":
        return "liger" if on_gpu else "chunked"
    return kernel
