"""GPU memory that a run needs at least, by arithmetic over the model's configuration.

A lower bound: activations, the buffers of libraries and the fragments of an allocator come on top.
What exceeds it cannot run, and is refused before anything starts; what stays below it may still not
fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.training import RoleConfig
from rlhf_ray.config.run import Config
from rlhf_ray.stages.sizes.model_size import NAME_A_FOLDER, ModelSize, bytes_of, model_size

_GIB = 1024**3
_KEY = "placement.gpu_memory_gib"


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryNeed:
    """Bytes that one GPU holds at the same time.

    Attributes:
        what: role and phase.
        parts: bytes by name.
        share: of the GPU that may be used for them.
        fix: what a user can do.
    """

    what: str
    parts: Mapping[str, float]
    share: float
    fix: str

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def memory_needs(config: Config, size: ModelSize) -> list[MemoryNeed]:
    """The needs of a run of reinforcement learning on GPUs, by role and phase."""
    is_shared = config.placement.strategy == "colocated" and config.generation.num_gpus > 0
    needs = list(_engine_needs(config, size, is_shared=is_shared))
    if config.training.num_gpus:
        needs += _learner_needs(config, size, is_shared=is_shared)
    reference = config.reference
    if config.starts_reference and config.reference.path is None and reference.num_gpus:
        needs.append(
            MemoryNeed(
                what="reference",
                parts={"weights": _weight_bytes(reference, size)},
                share=1.0,
                fix="set reference.zero_stage=3 and raise reference.num_ranks",
            )
        )
    return needs


def _engine_needs(config: Config, size: ModelSize, *, is_shared: bool) -> Iterator[MemoryNeed]:
    generation = config.generation
    if not generation.num_gpus:
        return
    # One sequence of the greatest length must fit, or vLLM does not start.
    cache = size.cache_values * 2 * config.max_engine_tokens / _width(config)
    yield MemoryNeed(
        what="engine, generating" if is_shared else "engine",
        parts={"weights": _engine_weights(config, size), "cache of one sample": cache},
        share=generation.gpu_memory_utilization,
        fix="raise generation.tensor_parallel_size or generation.gpu_memory_utilization",
    )


def _learner_needs(config: Config, size: ModelSize, *, is_shared: bool) -> Iterator[MemoryNeed]:
    training = config.training
    weights = _weight_bytes(training, size)
    states = _state_bytes(config, size)
    fix = (
        "raise training.num_ranks or training.zero_stage, or set training.offload_optimizer=true"
        if training.zero_stage
        else "set training.zero_stage=3 and raise training.num_ranks"
    )
    yield MemoryNeed(
        what="learner, training" if is_shared else "learner",
        parts={"weights": weights, **states},
        share=1.0,
        fix=fix,
    )
    if is_shared:
        # An EMA is published next to the float32 weights.
        is_averaged = training.ema_decay is not None
        kept = {n: states[n] for n in states if is_averaged and n in ("EMA", "float32 weights")}
        yield MemoryNeed(
            what="learner and engine, publishing",
            parts={
                "learner's weights": weights,
                **kept,
                "engine's weights": _engine_weights(config, size),
                "two buckets": 2 * config.publish.bucket_bytes,
            },
            share=1.0,
            fix="raise generation.tensor_parallel_size, or training.num_ranks at zero_stage=3, or "
            "use placement=disaggregated",
        )


def _engine_weights(config: Config, size: ModelSize) -> float:
    generation = config.generation
    if generation.extra_engine_args.keys() & {"quantization", "cpu_offload_gb"}:
        return 0.0
    return size.weights * bytes_of(generation.dtype) / _width(config)


def _width(config: Config) -> int:
    """Workers that share the weights of one engine."""
    return config.generation.tensor_parallel_size * config.generation.pipeline_parallel_size


def _weight_bytes(role: RoleConfig, size: ModelSize) -> float:
    if role.offload_parameters:
        return 0.0
    return size.weights * bytes_of(role.dtype) / _holders(role, is_sharded=role.zero_stage == 3)


def _state_bytes(config: Config, size: ModelSize) -> dict[str, float]:
    """Gradients, AdamW's float32 states, float32 weights and EMA of one rank, if all is trained."""
    training = config.training
    if not training.trains_all:
        return {}
    stage = training.zero_stage
    sharded = size.weights / _holders(training, is_sharded=stage >= 1)
    reduced = size.weights / _holders(training, is_sharded=stage >= 2)
    states = {"gradients": reduced * bytes_of(training.dtype)}
    if not training.offload_optimizer:
        states["Adam's moments"] = 8 * sharded
        if stage >= 1 or training.dtype != "float32":
            states["float32 weights"] = 4 * sharded
    if training.ema_decay is not None:
        states["EMA"] = 4 * sharded
    return states


def _holders(role: RoleConfig, *, is_sharded: bool) -> int:
    """Most ranks among which weights are divided. Some are whole in slices: a lower bound."""
    return role.num_ranks if is_sharded else role.tensor_parallel_size


def memory_lines(config: Config, model: Mapping[str, Any] | None) -> list[str]:
    """The needs of a run as lines for a user, or why there are none; nothing without GPUs.

    Args:
        model: values of the model's configuration; None if they are not known yet.
    """
    memory = config.placement.gpu_memory_gib
    if not _uses_gpus(config):
        return []
    if memory is None:
        return [f"GPU memory: not compared, {_KEY}=null"]
    size = model_size(model) if model is not None else None
    if size is None:
        why = "is of another family" if model else f"is not on this machine; {NAME_A_FOLDER}"
        return [f"GPU memory: not compared, because model.path={config.model.path} {why}"]
    needs = memory_needs(config, size)
    return [f"GPU memory of {_line(need, memory)}" for need in needs]


def check_gpu_memory(config: Config, model: Mapping[str, Any] | None) -> None:
    """Refuse a run on GPUs whose parts cannot fit; see `memory_lines` for the arguments.

    Raises:
        RequestError: names every role and phase that cannot fit, with its bytes.
    """
    memory = config.placement.gpu_memory_gib
    size = model_size(model) if model is not None else None
    if memory is None or size is None or not _uses_gpus(config):
        return
    needs = memory_needs(config, size)
    lost = [need for need in needs if need.total > need.share * memory * _GIB]
    if lost:
        raise RequestError(
            f"model.path={config.model.path} has {size.weights / 1e9:.1f} billion weights, which "
            f"do not fit on GPUs of {_KEY}={memory:g}:\n"
            + "\n".join(f"  {_line(need, memory)}; {need.fix}" for need in lost)
        )


def _uses_gpus(config: Config) -> bool:
    return config.generation.num_gpus > 0 or config.training.num_gpus > 0


def _line(need: MemoryNeed, memory: float) -> str:
    parts = ", ".join(f"{name} {size / _GIB:.1f}" for name, size in need.parts.items())
    return (
        f"{need.what}: {need.total / _GIB:.1f} of {need.share * memory:.1f} GiB, and activations "
        f"({parts})"
    )
