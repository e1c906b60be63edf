"""A model's weights by their Hugging Face names, one bounded group at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_ray.training.engine import TrainEngine
from rlhf_ray.training.ranks import rank
from rlhf_ray.training.shards import num_elements, whole_shape

# Elements that are gathered from ZeRO-3 shards at once, if no single tensor is larger.
_GATHERED_ELEMENTS = 64 * 1024 * 1024


def named_weights(engine: TrainEngine, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and saved buffers of `model`, whole, in the order of its state dict.

    Of tensors that share storage by design (a tied `lm_head`), the first is yielded. Every rank
    must iterate to the end, in step with the others: sharded parameters are gathered on the way.
    A tensor is valid until the next one is asked for; copy what is to be kept.
    """
    for group in _groups(model):
        with engine.gathered([tensor for _, tensor in group]):
            for name, tensor in group:
                yield name, tensor.detach()


def save_model(engine: TrainEngine, model: Any, tokenizer: Any, folder: Path) -> None:
    """Write safetensors, configuration and tokenizer; rank 0 writes, every rank calls it."""
    write_model(named_weights(engine, model), model, tokenizer, folder)


def write_model(
    named: Iterable[tuple[str, Tensor]], model: Any, tokenizer: Any, folder: Path
) -> None:
    """The same of weights that come one by one, on every rank alike."""
    state = {}
    for name, tensor in named:
        if rank() == 0:
            state[name] = tensor.to("cpu", copy=True)
    if rank() == 0:
        model.save_pretrained(folder, state_dict=state, safe_serialization=True)
        tokenizer.save_pretrained(folder)
    torch.distributed.barrier()


def distinct_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, in the order of the state dict, each tensor once."""
    seen: set[int] = set()
    distinct: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            distinct[name] = tensor
    return distinct


def weight_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """What `named_weights` gives away: names and shapes of the whole tensors."""
    return {name: whole_shape(tensor) for name, tensor in distinct_tensors(model).items()}


def _groups(model: nn.Module) -> list[list[tuple[str, Tensor]]]:
    """Consecutive tensors of at most `_GATHERED_ELEMENTS` together, each tensor once."""
    groups: list[list[tuple[str, Tensor]]] = [[]]
    size = 0
    for name, tensor in distinct_tensors(model).items():
        elements = num_elements(tensor)
        if groups[-1] and size + elements > _GATHERED_ELEMENTS:
            groups.append([])
            size = 0
        groups[-1].append((name, tensor))
        size += elements
    return groups
