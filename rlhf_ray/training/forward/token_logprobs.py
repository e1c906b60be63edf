"""Log-probabilities of given tokens from logits, without a float32 copy of all logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Float32 logits at a time. On a CPU a chunk of this size stays in the cache: forward and backward
# over 512 rows of a vocabulary of 49,152 were three times as fast as with 1024 rows in a chunk. On
# a GPU it is 0.5 GB, enough to keep it busy.
_CHUNK_ELEMENTS = {"cpu": 2**19, "cuda": 2**27}
# A log-probability whose exponential is 0, also in float64.
_LOWEST_LOGPROB = -1000.0


def token_logprobs(
    logits: Tensor,
    targets: Tensor,
    temperature: float,
    *,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each distribution.

        logprobs = (logits / temperature)[target] - logsumexp(logits / temperature)
        entropy  = -sum of p * log p over the vocabulary

    Computed in float32 (float64 for float64 logits) whatever the dtype of the logits.

    Args:
        logits [M, V]: -inf excludes a token. targets [M] int64.
        entropy_gradient: give the entropy a gradient too; costs more passes over the logits in the
            backward pass.

    Returns:
        logprobs [M], with gradient, and entropy [M].
    """
    assert logits.dim() == 2, f"logits must be [M, V], not {list(logits.shape)}"
    assert targets.shape == logits.shape[:1], (
        f"{list(targets.shape)} targets for {list(logits.shape)} logits"
    )
    assert temperature > 0, f"temperature is {temperature}"
    return _TokenLogprobs.apply(logits, targets, temperature, entropy_gradient)


class _TokenLogprobs(torch.autograd.Function):
    """The same as log_softmax and gather, with less memory.

    Saves the logits in their own dtype and computes the softmax again in the backward pass. Plain
    autograd would keep two float32 tensors of the size of the logits, the largest tensors of the
    whole step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        temperature: float,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        normalizer, chosen, entropy = _row_statistics(logits, targets, temperature)
        ctx.save_for_backward(logits, targets, normalizer, entropy)
        ctx.temperature, ctx.entropy_gradient = temperature, entropy_gradient
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return chosen, entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        """Gradient of the logits, with z the scaled logits, p their softmax and H the entropy:

        d logprob / d z_j = (1 if j is the target else 0) - p_j
        d H / d z_j       = -p_j * (log p_j + H)
        """
        logits, targets, normalizer, entropy = ctx.saved_tensors
        grad_chosen, grad_entropy = grad_outputs
        grad_logits = torch.empty_like(logits)
        for rows in _chunks(logits):
            # The in-place operations below reuse one buffer: every new one would be a chunk of its
            # size in float32.
            scale = grad_chosen[rows, None] / ctx.temperature
            logprobs = _shifted(logits[rows], normalizer[rows, None], ctx.temperature)
            if ctx.entropy_gradient:
                # A banned token (-inf) has weight 0, and 0 * -inf would be NaN.
                surprise = logprobs.clamp(min=_LOWEST_LOGPROB).add_(entropy[rows, None])
                slope = surprise.mul_(grad_entropy[rows, None] / ctx.temperature).add_(scale)
                gradient = logprobs.exp_().mul_(slope.neg_())
            else:
                gradient = logprobs.exp_().mul_(-scale)
            # The 1 at the target, added where it belongs instead of as a one-hot row.
            gradient.scatter_add_(1, targets[rows, None], scale)
            grad_logits[rows] = gradient
        return grad_logits, None, None, None


def _row_statistics(
    logits: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Per row [M]: the normalizer (logsumexp), the target's log-probability, the entropy.

    With z the scaled logits minus the largest of them, the largest probability is
    1 / sum of exp(z). So the sum comes from the softmax, which the entropy needs anyway.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    normalizer = torch.empty(logits.shape[0], dtype=dtype, device=logits.device)
    chosen, entropy = torch.empty_like(normalizer), torch.empty_like(normalizer)
    for rows in _chunks(logits):
        largest = logits[rows].amax(dim=1).to(dtype) / temperature
        scaled = _shifted(logits[rows], largest[:, None], temperature)
        weights = scaled.softmax(dim=1)
        log_sum = -weights.amax(dim=1).log()
        normalizer[rows] = largest + log_sum
        chosen[rows] = scaled.gather(1, targets[rows, None])[:, 0] - log_sum
        # A banned token (-inf) has weight 0, and 0 * -inf would be NaN.
        entropy[rows] = log_sum - torch.linalg.vecdot(weights, scaled.clamp_(min=_LOWEST_LOGPROB))
    return normalizer, chosen, entropy


def within_support(
    logits: Tensor, targets: Tensor, support_token_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logits and targets within the support of the sampling distribution.

    Args:
        logits [M, V], targets [M] int64.
        support_token_ids [M, K] integer: the tokens that could be sampled, each once, filled up
            with -1; None for the whole vocabulary.

    Returns:
        logits [M, K], -inf where there is no token, and the places [M] of the targets among them.
        A row whose target is outside its support is NaN: such a token had probability 0, so rows
        have been mixed up.
    """
    if support_token_ids is None:
        return logits, targets
    assert support_token_ids.dim() == 2, (
        f"the support must be [M, K], not {list(support_token_ids.shape)}"
    )
    assert support_token_ids.shape[0] == logits.shape[0], (
        f"{list(support_token_ids.shape)} tokens of the support for {list(logits.shape)} logits"
    )
    kept = logits.gather(1, support_token_ids.long().clamp(min=0))
    kept = kept.masked_fill(support_token_ids < 0, float("-inf"))
    is_target = support_token_ids == targets[:, None]
    kept = kept.masked_fill(~is_target.any(dim=1, keepdim=True), float("nan"))
    return kept, is_target.int().argmax(dim=1)


def support_logprobs(
    logits: Tensor, targets: Tensor, support_token_ids: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities over the support of the sampling distribution, and its entropy.

    The rows are short (K tokens, not V), so plain autograd can afford to keep them.

    Args:
        logits [M, V], targets [M] int64, support_token_ids [M, K] integer: see `within_support`.

    Returns:
        logprobs [M, K] and entropy [M], both with gradient; -inf where there is no token.
    """
    kept, _ = within_support(logits, targets, support_token_ids)
    scaled = kept.to(torch.promote_types(kept.dtype, torch.float32)) / temperature
    logprobs = scaled.log_softmax(dim=1)
    weights = logprobs.exp()
    # Padding (-inf) has weight 0, and 0 * -inf would be NaN.
    finite = torch.where(torch.isneginf(logprobs), 0.0, logprobs)
    return logprobs, -(weights * finite).sum(dim=1)


def of_targets(
    support_logprobs: Tensor, targets: Tensor, support_token_ids: Tensor | None
) -> Tensor:
    """The targets' log-probabilities [M] among those over the support [M, K]."""
    if support_token_ids is None:
        return support_logprobs.gather(1, targets[:, None])[:, 0]
    place = (support_token_ids == targets[:, None]).int().argmax(dim=1)
    return support_logprobs.gather(1, place[:, None])[:, 0]


def _shifted(logits: Tensor, shift: Tensor, temperature: float) -> Tensor:
    """logits / temperature - shift, in the dtype of the shift and in one pass."""
    return torch.add(-shift, logits.to(shift.dtype), alpha=1.0 / temperature)


def _chunks(logits: Tensor) -> list[slice]:
    num_rows, vocabulary = logits.shape
    step = max(1, _CHUNK_ELEMENTS[logits.device.type] // vocabulary)
    return [slice(start, start + step) for start in range(0, num_rows, step)]
