"""A walk through a model part by part, for weights that are made or moved a part at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def model_parts(module: nn.Module) -> Iterator[list[nn.Module]]:
    """Yield each layer of the model's stacks with all that is in it, then everything else.

    Children come before parents in a part. Layers are nearly all of a large model, and so the parts
    are small; the rest is one part, because some architectures make weights for their children.
    """
    layers = [layer for stack in _stacks(module) for layer in stack]
    inside: set[nn.Module] = set()
    for layer in layers:
        part = _with_children_first(layer)
        inside.update(part)
        yield part
    yield [other for other in _with_children_first(module) if other not in inside]


def _stacks(module: nn.Module) -> Iterator[nn.ModuleList]:
    """The outermost lists of modules."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _stacks(child)


def _with_children_first(module: nn.Module) -> list[nn.Module]:
    inner = [other for child in module.children() for other in _with_children_first(child)]
    return [*inner, module]


class RealTensors:
    """Replaces tensors on the device "meta" by memory, module by module.

    A tensor that two modules share (tied embeddings) stays shared.

    Args:
        device: of the memory, which is not initialised.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # The old tensor is kept next to the new one: otherwise its id could be given to another.
        self._real: dict[int, tuple[Tensor, Tensor]] = {}

    def replace_in(self, modules: Sequence[nn.Module]) -> list[Tensor]:
        """Replace parameters and buffers of these modules; returns the new ones."""
        made = []
        for module in modules:
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is None or not tensor.is_meta:
                        continue
                    if id(tensor) not in self._real:
                        made.append(self._make(tensor))
                    table[name] = self._real[id(tensor)][1]  # type: ignore[assignment]
        return made

    def _make(self, tensor: Tensor) -> Tensor:
        real = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
        if isinstance(tensor, nn.Parameter):
            real = nn.Parameter(real, requires_grad=tensor.requires_grad)
        self._real[id(tensor)] = (tensor, real)
        return real


def layer_stacks(decoder: Any) -> list[nn.ModuleList]:
    """The list of all layers of a decoder, under any name (`layers`, `h`, ...); usually one."""
    wanted = decoder.config.get_text_config().num_hidden_layers
    return [
        child
        for child in decoder.children()
        if isinstance(child, nn.ModuleList) and len(child) == wanted
    ]
