"""Memory of one GPU of a vLLM engine, and the samples that its cache holds at once."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.planning.devices import GIB
from rlhf_ray.planning.shape import ModelShape, bytes_of

# vLLM's graphs and their memory pool.
_GRAPHS = 0.7 * GIB
# The sampler's float32 copies of the logits of a step.
_SAMPLER_COPIES = 3

Parts = dict[str, float]
# Engines whose weights are not of their dtype, or not on the GPU.
_UNCOUNTED = ("quantization", "cpu_offload_gb")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineMemory:
    """Bytes of one GPU of an engine.

    Attributes:
        parts: without the cache.
        token: of one token in the cache.
    """

    parts: Parts
    token: float

    def cache(self, limit: float) -> float:
        """Bytes for the cache, of those that the engine may use."""
        return max(0.0, limit - sum(self.parts.values()))

    def at_once(self, limit: float, tokens: float) -> float:
        """Sequences of so many tokens that the cache holds."""
        return self.cache(limit) / (self.token * tokens)


def engine_memory(generation: GenerationConfig, shape: ModelShape) -> EngineMemory:
    """The memory of an engine by arithmetic; vLLM measures it when it starts."""
    width, tensor = bytes_of(generation.dtype), generation.tensor_parallel_size
    workers = tensor * generation.pipeline_parallel_size
    weights = 0.0 if is_uncounted(generation) else width * shape.weights / workers
    tokens = generation.max_num_batched_tokens
    alive = 4 * shape.hidden + (3 * shape.inner_per_token + shape.query_width) / tensor
    parts = {
        "weights": weights,
        "activations": width * tokens * alive,
        "sampling": 4.0 * _SAMPLER_COPIES * generation.max_num_seqs * shape.vocab,
    }
    if not generation.enforce_eager:
        parts["graphs"] = _GRAPHS
    # Latent keys are whole on every rank; other keys are divided as far as there are heads.
    is_latent = shape.cached_width < 2 * shape.output_width // shape.heads * shape.kv_heads
    divided = 1 if is_latent else min(tensor, shape.kv_heads)
    token = width * shape.cache_values / divided / generation.pipeline_parallel_size
    return EngineMemory(parts=parts, token=token)


def is_uncounted(generation: GenerationConfig) -> bool:
    """Whether the weights of the engine have another size than its dtype says."""
    return bool(generation.extra_engine_args.keys() & set(_UNCOUNTED))
