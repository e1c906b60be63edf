"""Settings of ZeRO: gathering of parameters, buckets and number formats of gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from rlhf_ray.config.setting import setting

_MOST = 10**12


@dataclass
class ZeroConfig:
    """Gathering of sharded parameters (ZeRO-3). Sizes are those of one rank."""

    hpz_partition_size: int = setting(
        1,
        "Ranks that hold a whole second copy of the weights together (ZeRO++ hpZ), usually those "
        "of a node: forward passes then gather within the node. It costs the size of the model "
        "divided by this number on every rank. 1 is off.",
        unit="ranks",
        minimum=1,
    )
    prefetch_elements: int = setting(
        50_000_000,
        "Most parameters gathered ahead of their use.",
        unit="elements",
        minimum=0,
        maximum=_MOST,
    )
    max_live_elements: int = setting(
        1_000_000_000,
        "Most gathered parameters that are kept at once.",
        unit="elements",
        minimum=0,
        maximum=_MOST,
    )
    max_reuse_elements: int = setting(
        1_000_000_000,
        "A gathered parameter is kept if its next use comes after fewer parameters than this.",
        unit="elements",
        minimum=0,
        maximum=_MOST,
    )
    persistence_elements: int = setting(
        100_000,
        "Parameters up to this size stay whole on every rank.",
        unit="elements",
        minimum=0,
        maximum=_MOST,
    )


@dataclass
class TrainedZeroConfig(ZeroConfig):
    """Gathering of sharded parameters (ZeRO-3), and reduction of gradients."""

    reduce_bucket_elements: int = setting(
        500_000_000,
        "Gradients reduced at once.",
        unit="elements",
        minimum=1,
        maximum=_MOST,
    )
    allgather_bucket_elements: int = setting(
        500_000_000,
        "Updated weights gathered at once (ZeRO 1 and 2).",
        unit="elements",
        minimum=1,
        maximum=_MOST,
    )
    communication_dtype: str = setting(
        "float32",
        "Number format of gradients on their way between ranks. bfloat16 halves the traffic, and "
        "rounds every summand.",
        choices=("float32", "bfloat16"),
    )
    gradient_dtype: str = setting(
        "float32",
        "Number format in which the gradients of micro-batches are summed. bfloat16 halves their "
        "memory, and loses small summands.",
        choices=("float32", "bfloat16"),
    )


# ZeRO stages at which a setting has an effect; all stages if it is not here.
_STAGES: dict[str, tuple[int, ...]] = {
    "hpz_partition_size": (3,),
    "prefetch_elements": (3,),
    "max_live_elements": (3,),
    "max_reuse_elements": (3,),
    "persistence_elements": (3,),
    "reduce_bucket_elements": (1, 2, 3),
    "allgather_bucket_elements": (1, 2),
}


def zero_problems(
    group: str, zero: ZeroConfig, *, stage: int, num_ranks: int, dtype: str, offloads: bool
) -> Iterator[str]:
    """Sentences about settings without an effect, or that contradict others.

    Args:
        group: configuration group of the role.
        offloads: whether parameters are kept in host memory.
    """
    for field in dataclasses.fields(zero):
        value, stages = vars(zero)[field.name], _STAGES.get(field.name)
        if stages is not None and stage not in stages and value != field.default:
            yield (
                f"{group}.zero.{field.name}={value}: has no effect at {group}.zero_stage={stage}; "
                f"set zero_stage to {' or '.join(map(str, stages))}, or leave it "
                f"{field.default}"
            )
    size = zero.hpz_partition_size
    if num_ranks % size:
        yield (
            f"{group}.zero.hpz_partition_size={size}: does not divide {group}.num_ranks="
            f"{num_ranks}; set it to the number of ranks on a node, or to 1"
        )
    if size > 1 and offloads:
        yield (
            f"{group}.zero.hpz_partition_size={size}: keeps a copy of the weights on the devices, "
            f"which {group}.offload_parameters=true moves to host memory; set one of them only"
        )
    in_bfloat16 = isinstance(zero, TrainedZeroConfig) and zero.gradient_dtype == "bfloat16"
    if in_bfloat16 and (dtype != "bfloat16" or stage < 2):
        yield (
            f"{group}.zero.gradient_dtype=bfloat16: needs {group}.dtype=bfloat16 and "
            f"{group}.zero_stage 2 or 3, and they are {dtype} and {stage}; change them, or leave "
            f"it float32"
        )
