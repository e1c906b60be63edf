"""A model's weights by their Hugging Face names, one bounded group at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_ray.models.saving.weight_files import plan_files, write_files, write_index
from rlhf_ray.models.saving.write import write_around, write_folder
from rlhf_ray.publish.plan import WeightSpec
from rlhf_ray.training.engine.deepspeed_engine import TrainEngine
from rlhf_ray.training.engine.ranks import rank, world_size
from rlhf_ray.training.engine.shards import distinct_tensors, num_elements, whole_shape
from rlhf_ray.training.engine.slicing.tensor_slice import slice_of
from rlhf_ray.training.weights.lora import BASE, is_factor, lora_layers, merged

# Elements gathered from ZeRO-3 shards at once, unless a single tensor is larger.
_GATHERED_ELEMENTS = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """A weight as engines and saved models see it.

    Attributes:
        name: Hugging Face name.
        tensor: the model's tensor, possibly sharded.
        layer: the layer with an adapter that the weight belongs to; None without an adapter.
    """

    name: str
    tensor: Tensor
    layer: Any

    def parts(self) -> list[Tensor]:
        """Tensors that must be gathered for `value`."""
        if self.layer is None:
            return [self.tensor]
        return [self.tensor, *self.layer.lora_A.parameters(), *self.layer.lora_B.parameters()]

    def value(self) -> Tensor:
        """The weight with its adapter merged in."""
        return self.tensor if self.layer is None else merged(self.layer)


def named_weights(engine: TrainEngine, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and saved buffers of `model`, whole, in the order of its state dict.

    Adapters are merged into the weights of their layers, and the names are those of a model without
    an adapter. Tied tensors (`lm_head` and the embedding) are yielded once, under the first name.
    All ranks must iterate to the end together, because sharded parameters are gathered on the way.
    A tensor is valid until the next one is asked for; copy it to keep it.
    """
    # Group by group: a gather per tensor is slow, because a model has hundreds of small ones, and a
    # gather of everything does not fit, because a 72B model in bfloat16 has 144 GB.
    for group in _groups(model):
        with engine.gathered([part for weight in group for part in weight.parts()]):
            for weight in group:
                with torch.no_grad():
                    value = weight.value().detach()
                    part = slice_of(weight.tensor)
                    value = value if part is None else part.joined(value)
                yield weight.name, value


def write_model(
    named: Iterable[tuple[str, Tensor]],
    specs: Sequence[WeightSpec],
    model: Any,
    tokenizer: Any,
    folder: Path,
    *,
    max_file_bytes: int,
) -> None:
    """Write safetensors, configuration and tokenizer; all ranks call it.

    All ranks write the files of a large model; rank 0 alone writes a model of one file.

    Args:
        named: names and whole tensors, which all ranks run to the end.
        specs: of the same tensors, in the same order.

    Raises:
        OSError: the weights could not be written; on all ranks.
    """
    plan = plan_files(model, specs, max_file_bytes=max_file_bytes)
    if plan is None:
        _write_whole(named, model, tokenizer, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    failure: Exception | None = None
    try:
        write_files(named, plan, model, folder, rank=rank(), world_size=world_size())
    except Exception as error:  # noqa: BLE001 - the other ranks must hear of it, and raise too
        failure = error
    failures: list[str | None] = [None] * world_size()
    torch.distributed.all_gather_object(failures, None if failure is None else str(failure))
    if failure is not None:
        raise failure
    if lost := [number for number, words in enumerate(failures) if words is not None]:
        raise OSError(f"rank {lost[0]} could not write its files: {failures[lost[0]]}")
    if rank() == 0:
        write_index(plan, folder)
        write_around(model, tokenizer, folder)
    torch.distributed.barrier()


def _write_whole(
    named: Iterable[tuple[str, Tensor]], model: Any, tokenizer: Any, folder: Path
) -> None:
    state = {}
    # Every rank iterates, because each step may be a collective operation. Only rank 0 copies:
    # eight copies of a model would be too much for a node.
    for name, tensor in named:
        if rank() == 0:
            state[name] = tensor.to("cpu", copy=True)
    if rank() == 0:
        write_folder(model, tokenizer, folder, state)
    torch.distributed.barrier()


def exported_weights(model: nn.Module) -> list[Weight]:
    """Weights for engines and saved models, in the order of the state dict, each tensor once."""
    layers = lora_layers(model)
    weights = []
    for name, tensor in distinct_tensors(model).items():
        owner, _, last = name.rpartition(".")
        # A wrapped layer: drop peft's part of its name. The adapter leaves its bias alone.
        if owner.endswith(BASE):
            owner = owner.removesuffix(BASE)
            layer = layers[owner] if last == "weight" else None
            weights.append(Weight(name=f"{owner}.{last}", tensor=tensor, layer=layer))
        elif not is_factor(name):
            weights.append(Weight(name=name, tensor=tensor, layer=None))
    return weights


def weight_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the whole tensors that `named_weights` yields, in that order."""
    return {weight.name: whole_shape(weight.tensor) for weight in exported_weights(model)}


def weight_specs(model: nn.Module) -> list[WeightSpec]:
    """Names, dtypes and whole shapes of the tensors that `named_weights` yields, in that order."""
    return [
        (weight.name, str(weight.tensor.dtype).removeprefix("torch."), whole_shape(weight.tensor))
        for weight in exported_weights(model)
    ]


def _groups(model: nn.Module) -> list[list[Weight]]:
    """Consecutive weights of at most `_GATHERED_ELEMENTS` together; a larger one is alone."""
    groups: list[list[Weight]] = [[]]
    size = 0
    for weight in exported_weights(model):
        elements = sum(num_elements(part) for part in weight.parts())
        if groups[-1] and size + elements > _GATHERED_ELEMENTS:
            groups.append([])
            size = 0
        groups[-1].append(weight)
        size += elements
    return groups
