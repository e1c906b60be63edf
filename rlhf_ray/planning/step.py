"""Seconds of a step by phase, tokens per second and GPU, and what binds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_ray.config.groups.algorithm import OldLogprobsFrom
from rlhf_ray.config.groups.training import RoleConfig, TrainingConfig
from rlhf_ray.config.rules.rule import trained_roles
from rlhf_ray.config.run import Config
from rlhf_ray.planning.adapter_size import trained_weights
from rlhf_ray.planning.devices import DEVICES, Accelerator
from rlhf_ray.planning.engine_memory import engine_memory
from rlhf_ray.planning.gpu_memory import gpu_memory
from rlhf_ray.planning.lengths import Lengths
from rlhf_ray.planning.needs import shares_gpus
from rlhf_ray.planning.roofline import (
    ADAPTED,
    ADAPTED_CHECKPOINTED,
    CHECKPOINTED,
    FORWARD,
    UPDATE,
    EngineSpeed,
    Passes,
    Split,
    Timed,
    decode_seconds,
    pass_seconds,
)
from rlhf_ray.planning.shape import ModelShape, bytes_of, model_shape
from rlhf_ray.planning.suggest import num_gpus

# Bytes a second: to a rank's disk, and between a GPU and its host.
_DISK, _HOST_LINK = 1e9, 25e9
# Bytes a second that AdamW on the host moves for one rank, and bytes of a weight that it moves.
_HOST_ADAM, _ADAM_BYTES = 20e9, 28
# Sleep, wake and the messages around a publish.
_TURN_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSeconds:
    """The plan of a step.

    Attributes:
        phases: seconds by name, in their order.
        overlaps: generation goes on while the learner works.
        tokens: of prompts and responses in a step.
        gpus: of the run.
    """

    phases: Mapping[str, Timed]
    overlaps: bool
    tokens: float
    gpus: float

    @property
    def seconds(self) -> float:
        seconds = {name: phase.seconds for name, phase in self.phases.items()}
        if not self.overlaps:
            return sum(seconds.values())
        generating = seconds.pop("generate", 0.0)
        publishing = seconds.pop("publish", 0.0)
        return max(generating, sum(seconds.values())) + publishing

    @property
    def binds(self) -> str:
        """The longest phase, and what it waits for the most."""
        name = max(self.phases, key=lambda name: self.phases[name].seconds)
        return f"{name}: {self.phases[name].binds}"

    @property
    def tokens_per_gpu(self) -> float:
        """Tokens a second and GPU."""
        return self.tokens / (self.seconds * self.gpus)


def step_lines(config: Config, model: Mapping[str, Any] | None) -> list[str]:
    """The seconds of a step as lines for a user; nothing without a device or a known model."""
    shape = model_shape(model) if model is not None else None
    step = step_seconds(config, shape) if shape is not None else None
    if step is None:
        return []
    width = max(map(len, step.phases))
    lengths = _lengths(config)
    what = "optimizer step" if config.is_fit else "step"
    if config.is_fit:
        counted = f"{config.fit.batch_size:,} samples of {lengths.mean:,.0f} tokens"
    else:
        counted = (
            f"{config.samples_per_step:,} samples of {lengths.prompt:,.0f} + {lengths.mean:,.0f} "
            f"tokens"
        )
    exactness = (
        "a guess, because exchanges between experts are not counted"
        if shape is not None and shape.experts
        else "an estimate, to about 20 %"
    )
    return [
        f"Time on {step.gpus:g} {config.plan.device}: {counted}; {exactness}",
        *(
            f"  {name:<{width}}  {phase.seconds:>8.1f} s  {phase.binds}"
            for name, phase in step.phases.items()
        ),
        f"  a {what} takes {step.seconds:.0f} s"
        + (", generating meanwhile" if step.overlaps else "")
        + f": {step.tokens_per_gpu:,.0f} tokens/s/GPU; it is bound by {step.binds}",
    ]


def step_seconds(config: Config, shape: ModelShape) -> StepSeconds | None:
    """The seconds of a step; None on CPUs, or without a device."""
    if config.plan.device is None or not config.training.num_gpus:
        return None
    device, lengths = DEVICES[config.plan.device], _lengths(config)
    if config.is_fit:
        tokens = config.fit.batch_size * lengths.mean
    elif not config.generation.num_gpus:
        return None
    else:
        tokens = config.samples_per_step * lengths.sample
    overlaps = config.max_staleness > 0 and not shares_gpus(config) and not config.is_fit
    return StepSeconds(
        phases=dict(_phases(config, shape, device, lengths, tokens)),
        overlaps=overlaps,
        tokens=tokens,
        gpus=num_gpus(config),
    )


def _phases(
    config: Config, shape: ModelShape, device: Accelerator, lengths: Lengths, tokens: float
) -> Iterator[tuple[str, Timed]]:
    if not config.is_fit:
        yield "generate", _generate(config, shape, device, lengths)
        if config.starts_reference:
            yield "score (reference)", _pass(config, config.reference, shape, FORWARD, tokens)
        if config.old_logprobs_from is OldLogprobsFrom.LEARNER_BEFORE_UPDATE:
            yield "score (learner)", _pass(config, config.training, shape, FORWARD, tokens)
    for group, role in trained_roles(config):
        epochs = 1 if config.is_fit else config.algorithm.num_epochs
        yield (
            "update" if group == "training" else f"update ({group})",
            _pass(config, role, shape, _update_passes(role), epochs * tokens),
        )
        steps = 1 if config.is_fit else config.optimizer_steps_per_batch
        if role.offload_optimizer:
            yield f"optimizer on the host ({group})", _host_step(role, shape, steps)
    if not config.is_fit:
        yield "publish", _publish(config, shape, device)
    if every := config.checkpoint.every_steps:
        written = 12 * sum(
            trained_weights(r, shape) / r.num_ranks for _, r in trained_roles(config)
        )
        yield (
            "checkpoint",
            Timed(seconds=written / _DISK / every, binds=f"disk, every {every} steps"),
        )


def _update_passes(role: TrainingConfig) -> Passes:
    if role.gradient_checkpointing:
        return ADAPTED_CHECKPOINTED if role.lora.is_on else CHECKPOINTED
    return ADAPTED if role.lora.is_on else UPDATE


def _lengths(config: Config) -> Lengths:
    plan = config.plan
    if config.is_fit:
        mean = plan.mean_response_tokens or config.examples.max_tokens / 2
        return Lengths(prompt=0.0, mean=mean, longest=config.examples.max_tokens)
    longest = config.generation.max_response_tokens
    return Lengths(
        prompt=plan.mean_prompt_tokens or config.data.max_prompt_tokens / 2,
        mean=min(plan.mean_response_tokens or longest / 2, longest),
        longest=longest,
    )


def _generate(config: Config, shape: ModelShape, device: Accelerator, lengths: Lengths) -> Timed:
    generation = config.generation
    memory = gpu_memory(config)
    assert memory is not None, "a device has a memory"
    limit = memory * generation.gpu_memory_utilization
    held = engine_memory(generation, shape).at_once(limit, lengths.prompt + lengths.context / 2)
    copies = generation.num_engines * generation.data_parallel_size
    engine = EngineSpeed(
        shape=shape,
        device=device,
        gpus=generation.tensor_parallel_size * generation.pipeline_parallel_size,
        at_once=max(1.0, min(held, generation.max_num_seqs)),
        width=bytes_of(generation.dtype),
        is_eager=generation.enforce_eager,
    )
    return decode_seconds(
        engine, lengths, samples=config.samples_per_step / copies, goes_on=config.max_staleness > 0
    )


def _pass(
    config: Config, role: RoleConfig, shape: ModelShape, passes: Passes, tokens: float
) -> Timed:
    """A pass of a DeepSpeed role over all tokens of a step."""
    assert config.plan.device is not None, "a role that is timed has a device"
    nodes = math.ceil(role.num_ranks / config.plan.gpus_per_node)
    return pass_seconds(
        shape,
        DEVICES[config.plan.device],
        passes,
        tokens=tokens / role.num_ranks,
        context=_lengths(config).context,
        split=Split(
            tensor=role.tensor_parallel_size,
            gathered_bytes=_gathered_bytes(role, shape, passes),
            nodes=nodes,
            gpus_per_node=min(config.plan.gpus_per_node, role.num_ranks),
        ),
        micro_batch=role.max_tokens_per_micro_batch,
    )


def _gathered_bytes(role: RoleConfig, shape: ModelShape, passes: Passes) -> float:
    """Weights that ZeRO-3 gathers for a micro-batch, and gradients that are summed after it."""
    if role.num_ranks == 1:
        return 0.0
    whole = shape.weights / role.tensor_parallel_size
    is_update = passes is not FORWARD
    gathers = (2 if is_update else 1) if role.zero_stage == 3 else 0
    summed = 0
    if is_update and isinstance(role, TrainingConfig) and role.zero_stage >= 2:
        summed = bytes_of(role.zero.communication_dtype)
    return whole * (gathers * bytes_of(role.dtype) + summed)


def _host_step(role: TrainingConfig, shape: ModelShape, steps: int) -> Timed:
    share = trained_weights(role, shape) / role.num_ranks
    seconds = share * (6 / _HOST_LINK + _ADAM_BYTES / _HOST_ADAM)
    return Timed(seconds=steps * seconds, binds="memory of the host")


def _publish(config: Config, shape: ModelShape, device: Accelerator) -> Timed:
    """All weights once: within a GPU and its node if it is shared, else from one learner rank."""
    size = bytes_of(config.training.dtype) * shape.weights
    is_shared = shares_gpus(config)
    rate = (device.link_gb_s if is_shared else device.network_gb_s) * 1e9 * 0.7
    turns = _TURN_SECONDS
    if is_shared:
        # States and weights leave for the host and come back.
        turns += 2 * 18 * shape.weights / config.training.num_ranks / _HOST_LINK
    return Timed(
        seconds=size / rate + turns, binds="moving the learner's states" if is_shared else "network"
    )
