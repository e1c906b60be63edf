"""The number of an adapter's weights, from the configuration of its base model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_ray.config.groups.lora import ALL_LINEAR, LoraConfig
from rlhf_ray.planning.shape import linear_shapes


def adapter_weights(model: Mapping[str, Any], lora: LoraConfig) -> int | None:
    """The weights of both factors of every layer; None for a family that is not known.

    Args:
        model: the values of the base model's `config.json`.
    """
    shapes = linear_shapes(model)
    if shapes is None:
        return None
    return model["num_hidden_layers"] * weights_of_layer(shapes, lora)


def weights_of_layer(shapes: Mapping[str, tuple[int, int]], lora: LoraConfig) -> int:
    """The weights of both factors in one layer, from the inputs and outputs of its linears."""
    chosen = {name: shape for name, shape in shapes.items() if _has_adapter(name, lora)}
    return lora.r * sum(inputs + outputs for inputs, outputs in chosen.values())


def _has_adapter(name: str, lora: LoraConfig) -> bool:
    """Whether a layer is chosen, as peft chooses it: by the end of its name, at a dot."""
    wanted = lora.target_modules
    return wanted == [ALL_LINEAR] or any(f".{name}".endswith(f".{end}") for end in wanted)
