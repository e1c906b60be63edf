"""The comparison of needs with the memory of a GPU: lines of the plan, and the refusal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.run import Config
from rlhf_ray.planning.devices import DEVICES, GIB
from rlhf_ray.planning.needs import ENGINE, PhaseNeed, phase_needs
from rlhf_ray.planning.shape import NAME_A_FOLDER, model_shape
from rlhf_ray.planning.suggest import num_gpus, suggestion

# The error of an estimate that a test allows: what exceeds a GPU by less may still fit.
TOLERANCE = 0.1
_KEY = "placement.gpu_memory_gib"
_MOST_PARTS = 4


def gpu_memory(config: Config) -> float | None:
    """Bytes of one GPU: those that are set, or those of the device of the plan."""
    if config.placement.gpu_memory_gib is not None:
        return config.placement.gpu_memory_gib * GIB
    device = config.plan.device
    return DEVICES[device].memory_gib * GIB if device is not None else None


def does_fit(need: PhaseNeed, memory: float) -> bool:
    """Whether a phase may fit: with all that is certain, and with the estimates a little lower."""
    limit = need.share * memory
    return need.certain <= limit and need.total * (1 - TOLERANCE) <= limit


def check_gpu_memory(config: Config, model: Mapping[str, Any] | None) -> None:
    """Refuse a run on GPUs whose parts cannot fit; see `memory_lines` for the arguments.

    Raises:
        RequestError: names every role and phase that cannot fit, with its bytes, and the nearest
            change of settings with which it would.
    """
    memory, shape = gpu_memory(config), model_shape(model) if model is not None else None
    if memory is None or shape is None or not uses_gpus(config):
        return
    needs = phase_needs(config, shape)
    lost = [need for need in needs if not does_fit(need, memory)]
    if not lost:
        return
    shown = "\n".join(f"  {_sentence(need, memory)}" for need in lost)
    told = ""
    if config.plan.suggest:
        # What is advised fits with the estimates as they are.
        told = suggestion(config, shape, lambda need: need.total <= need.share * memory)
        told = f"\n{told}" if told else ""
    raise RequestError(
        f"model.path={config.model.path} has {shape.weights / 1e9:.1f} billion weights, which "
        f"do not fit on GPUs of {_memory_words(config, memory)}:\n{shown}{told}"
    )


def memory_lines(config: Config, model: Mapping[str, Any] | None) -> list[str]:
    """The needs of a run as lines for a user, or, on GPUs, why there are none.

    Args:
        model: values of the model's configuration; None if they are not known yet.
    """
    shape = model_shape(model) if model is not None else None
    on_gpus = uses_gpus(config)
    if shape is None and not on_gpus:
        return []
    if shape is None:
        why = "is of another family" if model else f"is not on this machine; {NAME_A_FOLDER}"
        return [f"GPU memory: not compared, because model.path={config.model.path} {why}"]
    memory = gpu_memory(config)
    lines = []
    if memory is None and on_gpus:
        lines.append(f"GPU memory: not compared, {_KEY}=null and plan.device=null")
    return [*lines, *_table(config, phase_needs(config, shape), memory)]


def _table(config: Config, needs: Sequence[PhaseNeed], memory: float | None) -> Iterator[str]:
    """Rows of role, phase, memory of a GPU, of the host, and the largest parts."""
    rows = [("role", "phase", "GPU GiB", "host GiB", "the most of it")]
    rows += [
        (
            need.role,
            need.phase,
            _of_limit(need, memory) if need.device else "-",
            f"{sum(need.host.values()) / GIB:.1f}",
            _parts(need.device or need.host),
        )
        for need in needs
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [f"{row[0]:<{widths[0]}}", f"{row[1]:<{widths[1]}}"]
        cells += [f"{row[2]:>{widths[2]}}", f"{row[3]:>{widths[3]}}", row[4]]
        yield "  ".join(cells)
    yield from _cache_lines(config, needs, memory)
    yield from _host_lines(config, needs)


def _cache_lines(config: Config, needs: Sequence[PhaseNeed], memory: float | None) -> Iterator[str]:
    """Samples that the cache of an engine holds at once."""
    generation = config.generation
    for need in needs:
        if need.cache is None:
            continue
        longest = config.max_engine_tokens
        if not need.device:
            cache = (generation.kv_cache_gib or 0) * GIB
            held = cache / (need.cache.token * longest)
        elif memory is None:
            continue
        else:
            limit = need.share * memory
            cache, held = need.cache.cache(limit), need.cache.at_once(limit, longest)
        most = generation.max_num_seqs
        binds = "the cache" if held < most else f"generation.max_num_seqs={most}"
        yield (
            f"cache of {'a GPU' if need.device else 'an engine'}: {cache / GIB:.1f} GiB, "
            f"{need.cache.token / 1024:.0f} KiB a token; an engine runs {min(held, most):.0f} of "
            f"the longest samples ({longest:,} tokens) at once, bound by {binds}"
        )


def _host_lines(config: Config, needs: Sequence[PhaseNeed]) -> Iterator[str]:
    """GPUs and nodes, and the host memory of a node that is full of the role that needs the most.

    Without GPUs all roles are on few machines: the sum over all ranks.
    """
    if not uses_gpus(config):
        most: dict[str, float] = {}
        for need in needs:
            size = sum(need.host.values()) * _ranks(config, need.role)
            most[need.role] = max(most.get(need.role, 0.0), size)
        shown = ", ".join(f"{role} {size / GIB:.1f}" for role, size in most.items())
        yield f"host memory: {sum(most.values()) / GIB:.1f} GiB for all ranks together ({shown})"
        return
    gpus, on_node = num_gpus(config), config.plan.gpus_per_node
    nodes = math.ceil(gpus / on_node)
    largest = max(needs, key=lambda need: sum(need.host.values()))
    ranks = min(_ranks(config, largest.role), on_node)
    yield f"GPUs: {gpus:g}, on {nodes} {'node' if nodes == 1 else 'nodes'} of {on_node}"
    yield (
        f"host memory: {sum(largest.host.values()) * ranks / GIB:.0f} GiB for {ranks} ranks of "
        f"{largest.role} on a node, in phase {largest.phase} ({_parts(largest.host)} each)"
    )


def _ranks(config: Config, role: str) -> int:
    if role == ENGINE:
        return config.generation.num_engines * config.generation.num_workers
    groups = {
        "training": config.training,
        "critic": config.critic,
        "reference": config.reference,
        "reward.model": config.reward.model,
    }
    return groups[role].num_ranks


def uses_gpus(config: Config) -> bool:
    """Whether learner or engines run on GPUs."""
    return config.training.num_gpus > 0 or (not config.is_fit and config.generation.num_gpus > 0)


def _sentence(need: PhaseNeed, memory: float) -> str:
    return f"{need.role}, {need.phase}: {_of_limit(need, memory)} GiB ({_parts(need.device, 8)})"


def _of_limit(need: PhaseNeed, memory: float | None) -> str:
    size = f"{need.total / GIB:.1f}"
    return size if memory is None else f"{size} of {need.share * memory / GIB:.1f}"


def _parts(parts: Mapping[str, float], most: int = _MOST_PARTS) -> str:
    largest = sorted(parts.items(), key=lambda item: -item[1])[:most]
    return ", ".join(f"{name} {size / GIB:.1f}" for name, size in largest if size / GIB >= 0.05)


def _memory_words(config: Config, memory: float) -> str:
    if config.placement.gpu_memory_gib is not None:
        return f"{_KEY}={config.placement.gpu_memory_gib:g}"
    return f"plan.device={config.plan.device} ({memory / GIB:.1f} GiB)"
