"""Log-probabilities of chosen tokens, without a float32 copy of all logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Logits in float32 at a time. On a CPU a chunk stays in the cache, which made forward and backward
# over 512 rows of a vocabulary of 49,152 three times as fast as chunks of 1024 rows; on a GPU it is
# 0.5 GB, enough to keep it busy.
_CHUNK_ELEMENTS = {"cpu": 2**19, "cuda": 2**27}


def token_logprobs(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each distribution.

        logprobs = (logits / temperature)[target] - logsumexp(logits / temperature)
        entropy  = -sum of p * log p over the vocabulary

    Computed in float32 (float64 for float64 logits) whatever the dtype of the logits.

    Args:
        logits [M, V], targets [M] int64.

    Returns:
        logprobs [M], with gradient, and entropy [M], without.
    """
    assert logits.dim() == 2, f"logits must be [M, V], not {list(logits.shape)}"
    assert targets.shape == logits.shape[:1], (
        f"{list(targets.shape)} targets for {list(logits.shape)} logits"
    )
    assert temperature > 0, f"temperature is {temperature}"
    return _TokenLogprobs.apply(logits, targets, temperature)


class _TokenLogprobs(torch.autograd.Function):
    """Saves the logits as they came; the softmax is computed again in the backward pass.

    Written out, because plain autograd keeps two float32 tensors of the size of the logits, the
    largest in the whole step.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        normalizer = torch.empty(logits.shape[0], dtype=dtype, device=logits.device)
        chosen, entropy = torch.empty_like(normalizer), torch.empty_like(normalizer)
        for rows in _chunks(logits):
            scaled = _scaled(logits[rows], temperature, dtype)
            logprobs = scaled.log_softmax(dim=1)
            # The log of the sum of exponentials, without a second exponential.
            normalizer[rows] = scaled.amax(dim=1) - logprobs.amax(dim=1)
            chosen[rows] = logprobs.gather(1, targets[rows, None])[:, 0]
            weights = logprobs.exp()
            # A banned token (-inf) has weight 0, and 0 * -inf would be NaN.
            entropy[rows] = -torch.linalg.vecdot(
                weights, logprobs.clamp_(min=torch.finfo(dtype).min)
            )
        ctx.save_for_backward(logits, targets, normalizer)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return chosen, entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, normalizer = ctx.saved_tensors
        grad_chosen = grad_outputs[0]
        grad_logits = torch.empty_like(logits)
        for rows in _chunks(logits):
            scale = grad_chosen[rows, None] / ctx.temperature
            scaled = _scaled(logits[rows], ctx.temperature, normalizer.dtype)
            gradient = (scaled - normalizer[rows, None]).exp_().mul_(-scale)
            gradient.scatter_add_(1, targets[rows, None], scale)
            grad_logits[rows] = gradient
        return grad_logits, None, None


def _scaled(logits: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    """The logits at this temperature, not copied where nothing changes."""
    converted = logits.to(dtype)
    return converted if temperature == 1.0 else converted / temperature


def _chunks(logits: Tensor) -> list[slice]:
    num_rows, vocabulary = logits.shape
    step = max(1, _CHUNK_ELEMENTS[logits.device.type] // vocabulary)
    return [slice(start, start + step) for start in range(0, num_rows, step)]
