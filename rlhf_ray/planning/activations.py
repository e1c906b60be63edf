"""Activations and logits of a micro-batch, on one rank.

Counted over the tensors that a decoder of transformers keeps for its backward pass (norms in
float32, queries, keys, the gated MLP), and over those that `training.forward.head_logprobs` makes.
"""

from __future__ import annotations

from rlhf_ray.config.groups.training import RoleConfig
from rlhf_ray.planning.shape import ModelShape, bytes_of

# Of `training.forward`: elements of a chunk of logits, of those kept for the backward pass, and of
# the float32 logits at a time. A test compares them.
CHUNK = {"cpu": 3 * 2**23, "cuda": 2**28}
KEPT = {"cpu": 2**26, "cuda": 2**28}
FLOAT32_CHUNK = {"cpu": 2**19, "cuda": 2**27}
# Float32 copies of a chunk of logits that are alive at once.
_FLOAT32_COPIES = 3

Parts = dict[str, float]


def training_activations(
    role: RoleConfig, shape: ModelShape, *, checkpointing: bool, head: str, on_gpu: bool
) -> tuple[Parts, Parts]:
    """Bytes of the largest micro-batch at the start of its backward pass, and at the end.

    Args:
        checkpointing: layers are computed again in the backward pass.
        head: kernel of the head (chunked, liger), or none for a scalar head.
    """
    tokens, width = role.max_tokens_per_micro_batch, bytes_of(role.dtype)
    layer = tokens * _layer_bytes(role, shape)
    # Gradients of the widest tensors of a layer, on their way back.
    moving = tokens * width * 3 * (shape.inner_per_token + shape.hidden) / role.tensor_parallel_size
    of_head = head_memory(role, shape, kernel=head, on_gpu=on_gpu, with_gradient=True)
    # The logits are gone when the backward pass comes to the layers.
    if checkpointing:
        kept = {"inputs of layers": tokens * width * float(shape.hidden) * shape.layers}
        of_layer = {"activations of a layer": layer + moving}
    else:
        kept = {"activations": layer * shape.layers}
        of_layer = {"gradients of activations": moving}
    return kept | max(of_head, of_layer, key=lambda parts: sum(parts.values())), of_layer


def scoring_activations(role: RoleConfig, shape: ModelShape, *, head: str, on_gpu: bool) -> Parts:
    """Bytes of the forward pass of the largest micro-batch, without a gradient."""
    tokens, width = role.max_tokens_per_micro_batch, bytes_of(role.dtype)
    alive = 4 * shape.hidden + max(3 * shape.inner_per_token, 2 * shape.query_width)
    activations = {"activations": tokens * width * alive / role.tensor_parallel_size}
    return activations | head_memory(role, shape, kernel=head, on_gpu=on_gpu, with_gradient=False)


def head_memory(
    role: RoleConfig, shape: ModelShape, *, kernel: str, on_gpu: bool, with_gradient: bool
) -> Parts:
    """Bytes of the head: logits, their gradient, float32 copies, the gradient of its weight."""
    if kernel == "none":
        return {}
    width, device = bytes_of(role.dtype), "cuda" if on_gpu else "cpu"
    # The gradient of the weight; of several chunks a sum and the next one.
    of_weight = float(width * shape.embedding) if with_gradient else 0.0
    if kernel == "liger":
        return {"head": 2 * of_weight}
    elements = role.max_tokens_per_micro_batch * shape.vocab
    if elements > KEPT[device]:
        # Chunks of equal size, as `tensor_split` makes them.
        elements /= -(-elements // CHUNK[device])
        of_weight *= 2
    copies = 4 * min(elements, FLOAT32_CHUNK[device]) * _FLOAT32_COPIES
    return {"logits": elements * width * (2 if with_gradient else 1) + copies, "head": of_weight}


def _layer_bytes(role: RoleConfig, shape: ModelShape) -> float:
    """Bytes of one token that one layer keeps for its backward pass."""
    width = bytes_of(role.dtype)
    # A norm keeps its input in float32, and its output before and after its weight.
    norms = 2 * shape.hidden * (4 + 2 * width)
    keys = shape.cached_width
    attention = width * (2 * shape.query_width + keys + 2 * shape.output_width)
    # gate, its activation, up, and their product.
    mlp = width * 4 * shape.inner_per_token
    return norms + (attention + mlp) / role.tensor_parallel_size
