"""The number of weights that a role trains, and of those of an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_ray.config.groups.lora import ALL_LINEAR, LoraConfig
from rlhf_ray.config.groups.training import TrainingConfig
from rlhf_ray.planning.shape import ModelShape, linear_shapes


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


def trained_weights(role: TrainingConfig, shape: ModelShape) -> float:
    """Trained weights of the whole model; 0, a lower bound, where it is not known."""
    if role.lora.is_on:
        linear = shape.linear
        return float(shape.layers * weights_of_layer(linear, role.lora)) if linear else 0.0
    if role.freeze:
        return 0.0  # Patterns of names: what they leave is known to the loaded model alone.
    if not role.freeze_layers:
        return float(shape.weights)
    kept = max(0, shape.layers - role.freeze_layers) / shape.layers
    return kept * shape.layer_weights + (0 if shape.is_tied else shape.embedding)
