"""Log-probabilities of chosen tokens, without a float32 copy of all logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Rows of logits in float32 at a time: 1024 rows of a vocabulary of 150,000 are 0.6 GB.
_CHUNK_ROWS = 1024


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
        for rows in _chunks(logits.shape[0]):
            scaled = logits[rows].to(dtype) / temperature
            largest = scaled.amax(dim=1, keepdim=True)
            shifted = scaled - largest
            weights = shifted.exp()
            total = weights.sum(dim=1)
            log_total = total.log()
            chosen[rows] = shifted.gather(1, targets[rows, None])[:, 0] - log_total
            # -inf logits (a banned token) have weight 0, and 0 * -inf would be NaN.
            mean = (weights * shifted.masked_fill(weights == 0, 0.0)).sum(dim=1) / total
            entropy[rows] = log_total - mean
            normalizer[rows] = largest[:, 0] + log_total
        ctx.save_for_backward(logits, targets, normalizer)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return chosen, entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, normalizer = ctx.saved_tensors
        grad_chosen = grad_outputs[0]
        grad_logits = torch.empty_like(logits)
        for rows in _chunks(logits.shape[0]):
            scale = grad_chosen[rows, None] / ctx.temperature
            scaled = logits[rows].to(normalizer.dtype) / ctx.temperature
            gradient = (scaled - normalizer[rows, None]).exp_().mul_(-scale)
            gradient.scatter_add_(1, targets[rows, None], scale)
            grad_logits[rows] = gradient.to(logits.dtype)
        return grad_logits, None, None


def _chunks(num_rows: int) -> list[slice]:
    return [slice(start, start + _CHUNK_ROWS) for start in range(0, num_rows, _CHUNK_ROWS)]
