"""The number of weights that a role trains: all, an adapter's, or those that are not frozen."""

from __future__ import annotations

from rlhf_ray.config.groups.training import TrainingConfig
from rlhf_ray.planning.adapter_size import weights_of_layer
from rlhf_ray.planning.shape import ModelShape


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
